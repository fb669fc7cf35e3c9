//! Planner: chooses the fast filters for a set of names.
//!
//! - A name at a given place is compared with the digest's bits ([`Mask`]).
//! - A name *alone* has its own window filter ([`Classes`]): one bit for each of eight characters.
//! - A *bank* ([`Bank`]) holds many names in eight buckets: one bit for each bucket.
//! - *Grams* ([`Grams`]) are for hundreds of names: an index of sequences of four characters.
//!
//! The planner chooses the combination with the lowest estimated cost, in vector operations for
//! sixteen hashes. The choice affects only how fast a search is, never what it finds.

mod bank;
mod classes;
mod grams;
mod masks;

use self::grams::Pieces;
#[cfg(target_arch = "aarch64")]
pub(crate) use self::grams::key_of;
pub(crate) use self::{
    bank::Bank,
    classes::{Agreement, ClassTable, Classes},
    grams::{CODES, Grams},
    masks::Mask,
};
use crate::{digits::Text, name::Name};

/// The parts of a filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) masks: Vec<Mask>,
    pub(crate) alone: Vec<Classes>,
    pub(crate) banks: Vec<Bank>,
    pub(crate) grams: Option<Grams>,
    /// Numbers of the names that the grams do not cover.
    pub(crate) apart: Vec<u16>,
    /// Estimated cost, in vector operations for sixteen hashes.
    pub(crate) cost: f64,
}

/// Cost of a hash that passes without being a hit, and the additional cost for each name to compare
/// it with, in vector operations. The digest is extracted from the vectors and checked by itself.
const STRAY: f64 = 300.0;
const STRAY_NAME: f64 = 80.0;

/// Number of hashes that the estimates are for.
const HASHES: f64 = 16.0;

impl Plan {
    pub(crate) fn new(text: Text, names: &[Name]) -> Plan {
        let everywhere = Plan::everywhere(text, names, |_| true);
        if names.iter().all(|name| name.at.is_none()) {
            return everywhere;
        }
        // A filter for all places is a necessary condition for names at one place, too.
        let mut plan = Plan::everywhere(text, names, |name| name.at.is_none());
        for (number, name) in (0..=u16::MAX).zip(names) {
            if name.at.is_some() {
                plan.masks.extend(Mask::all(name));
                plan.apart.push(number);
            }
        }
        Mask::merge(&mut plan.masks);
        plan.apart.sort_unstable();
        let stray = HASHES * (STRAY + STRAY_NAME * plan.apart.len() as f64);
        plan.cost += Mask::cost(&plan.masks, stray);
        if plan.cost <= everywhere.cost {
            plan
        } else {
            everywhere
        }
    }

    /// Plans filters for all places, for those names for which `is_planned` returns `true`.
    fn everywhere(text: Text, names: &[Name], is_planned: impl Fn(&Name) -> bool) -> Plan {
        let mut planned = (0..=u16::MAX)
            .zip(names)
            .filter(|(_, name)| is_planned(name));
        let (first, second) = (planned.next(), planned.next());
        let (Some((number, name)), None) = (first, second) else {
            return match first {
                Some(_) => Plan::for_many(text, names, is_planned),
                None => Plan::default(),
            };
        };
        let classes = Classes::new(name);
        Plan {
            cost: classes.cost(text),
            alone: vec![classes],
            apart: vec![number],
            ..Plan::default()
        }
    }

    fn for_many(text: Text, names: &[Name], is_planned: impl Fn(&Name) -> bool) -> Plan {
        let pieces = |name: &Name| Pieces::of(name).filter(|_| is_planned(name));
        let pieces: Vec<Option<Pieces>> = names.iter().map(pieces).collect();
        let mut best: Option<Draft> = None;
        let mut apart_before = None;
        // Grams at every `stride`-th place; none if `stride` is 0.
        for stride in (0..=Grams::STRIDES).rev() {
            let apart: Vec<u16> = (0..=u16::MAX)
                .zip(names.iter().zip(&pieces))
                .filter(|(_, (name, _))| is_planned(name))
                .filter(|(_, (_, pieces))| {
                    !pieces
                        .as_ref()
                        .is_some_and(|pieces| pieces.are_found_at_every(stride))
                })
                .map(|(number, _)| number)
                .collect();
            // A shorter stride helps only if the grams then cover more names.
            if stride > 0 && apart_before.replace(apart.len()) == Some(apart.len()) {
                continue;
            }
            let draft = Draft::new(text, names, &pieces, stride, apart);
            if best.as_ref().is_none_or(|best| draft.cost < best.cost) {
                best = Some(draft);
            }
        }
        match best {
            Some(draft) => draft.plan(names, &pieces),
            None => unreachable!("there is always the plan without grams"),
        }
    }

    /// Returns a plan that uses grams for all names that are sure to be found at every `stride`-th
    /// place.
    #[cfg(test)]
    pub(crate) fn with_stride(names: &[Name], stride: usize) -> Plan {
        let pieces: Vec<Option<Pieces>> = names.iter().map(Pieces::of).collect();
        let found = |number: &u16| {
            let pieces = &pieces[usize::from(*number)];
            pieces
                .as_ref()
                .is_some_and(|pieces| pieces.are_found_at_every(stride))
        };
        let apart = (0..names.len() as u16).filter(|number| !found(number));
        Draft::new(Text::Base64, names, &pieces, stride, apart.collect()).plan(names, &pieces)
    }
}

/// A plan whose cost is known, but whose filters are not built yet.
struct Draft {
    cost: f64,
    stride: usize,
    apart: Vec<u16>,
    /// For each number of errors: the number of names in a bucket, and the number of their
    /// characters that a bank checks.
    shapes: [(usize, usize); Bank::MAX_ERRORS as usize + 1],
}

impl Draft {
    fn new(
        text: Text,
        names: &[Name],
        pieces: &[Option<Pieces>],
        stride: usize,
        apart: Vec<u16>,
    ) -> Draft {
        let stray = HASHES * (STRAY + STRAY_NAME * apart.len() as f64);
        let indexed = pieces.iter().flatten();
        let indexed = indexed.filter(|pieces| pieces.are_found_at_every(stride));
        let mut draft = Draft {
            cost: Grams::cost(indexed, stride, stray),
            stride,
            apart,
            shapes: [(1, 1); _],
        };
        for errors in 0..=Bank::MAX_ERRORS {
            let alike = draft.alike(names, errors);
            let (shape, cost) = Bank::cheapest(text, &alike, errors, stray);
            draft.shapes[usize::from(errors)] = shape;
            draft.cost += cost;
        }
        let alone = draft.alone(names).map(|name| Classes::new(name).cost(text));
        draft.cost += alone.sum::<f64>();
        draft
    }

    /// Returns the names in `apart` whose maximum distance is `errors`, in the order in which banks
    /// take them.
    fn alike<'a>(&self, names: &'a [Name], errors: u8) -> Vec<&'a Name> {
        let apart = self.apart.iter().map(|number| &names[usize::from(*number)]);
        let mut alike: Vec<&Name> = apart.filter(|name| name.max_distance == errors).collect();
        // Names share a bucket best if they have the same length and the same first character.
        alike.sort_by_key(|name| {
            let length = name.characters.len().min(Bank::MAX_LEN);
            (length, name.characters.first().map(|first| first.bits()))
        });
        alike
    }

    /// Returns the names in `apart` whose maximum distance is too great for a bank.
    fn alone<'a>(&'a self, names: &'a [Name]) -> impl Iterator<Item = &'a Name> {
        let apart = self.apart.iter().map(|number| &names[usize::from(*number)]);
        apart.filter(|name| name.max_distance > Bank::MAX_ERRORS)
    }

    fn plan(self, names: &[Name], pieces: &[Option<Pieces>]) -> Plan {
        let mut banks = Vec::new();
        for errors in 0..=Bank::MAX_ERRORS {
            let (in_bucket, length) = self.shapes[usize::from(errors)];
            let alike = self.alike(names, errors);
            let chunks = alike.chunks(in_bucket * Bank::BUCKETS);
            banks.extend(chunks.map(|names| Bank::new(names, in_bucket, length, errors)));
        }
        let indexed = (0..=u16::MAX).zip(pieces).filter_map(|(number, pieces)| {
            let pieces = pieces
                .as_ref()
                .filter(|pieces| pieces.are_found_at_every(self.stride))?;
            Some((number, pieces))
        });
        let indexed: Vec<_> = indexed.collect();
        Plan {
            masks: Vec::new(),
            alone: self.alone(names).map(Classes::new).collect(),
            banks,
            grams: (!indexed.is_empty()).then(|| Grams::new(&indexed, self.stride)),
            apart: self.apart,
            cost: self.cost,
        }
    }
}

//! Limits the calls of each address, and those of all addresses together, before authentication.

use std::{
    collections::HashMap,
    convert::Infallible,
    num::{NonZeroU32, NonZeroUsize},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hashfinder_transport::{
    Origin, Peer,
    rate::{Bucket, Rate},
};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    auth::Rules,
    call_info::CallInfo,
    errors::CallError,
    layers::body_observer::{BodyObserver, LayerFuture, ObservedBody},
    rejections::Rejections,
};

/// Maximum number of addresses with an account, at about 100 bytes each. An address needs one only
/// while it has open calls, and until its rate limits have recovered.
const ORIGINS: usize = 65_536;

/// Minimum time between two sweeps for accounts that are no longer needed. A sweep takes about a
/// millisecond.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Divisor of the limit on open calls for methods that need no credential: such calls may be a
/// quarter of all open calls, and those of one address a quarter of that quarter.
///
/// A health watch may never end. Without this limit, callers without a credential could take all
/// open calls, and would need only a few addresses to do it. A single IPv6 network has thousands.
/// Then callers with a credential could make no call.
const SHARE_FOR_ANYONE: usize = 4;

/// Limits of one address, and of all addresses together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddressLimits {
    /// Maximum number of calls that an address may begin per second, and at once.
    pub(crate) calls_per_second: NonZeroU32,
    /// Maximum number of open calls of all addresses together.
    pub(crate) open_calls: NonZeroUsize,
    /// Maximum number of open calls of one address.
    pub(crate) open_calls_of_address: NonZeroUsize,
    /// Maximum number of rejected credentials of an address per second; ten times this number at
    /// once.
    pub(crate) refused_credentials_per_second: NonZeroU32,
}

impl AddressLimits {
    /// Returns the maximum number of open calls of methods that need no credential: in total, and
    /// of one address.
    fn open_for_anyone(&self) -> (NonZeroUsize, NonZeroUsize) {
        let share =
            |of: usize| NonZeroUsize::new(of / SHARE_FOR_ANYONE).unwrap_or(NonZeroUsize::MIN);
        let all = share(self.open_calls.get());
        (all, share(all.get()).min(self.open_calls_of_address))
    }

    fn refused_credentials(&self) -> Rate {
        let per_second = f64::from(self.refused_credentials_per_second.get());
        Rate {
            per_second,
            burst: 10.0 * per_second,
        }
    }

    fn calls(&self) -> Rate {
        let per_second = f64::from(self.calls_per_second.get());
        Rate {
            per_second,
            burst: per_second,
        }
    }
}

/// The limits, and what each address has used. Clones share them.
#[derive(Clone)]
pub(crate) struct RateLimits(Arc<Shared>);

struct Shared {
    limits: AddressLimits,
    origins: Mutex<Origins>,
}

struct Origins {
    known: HashMap<Origin, Account>,
    /// The account of all addresses that arrive while the table of known addresses is full. So a
    /// flood of addresses can neither make the table grow nor shut out known addresses.
    newcomers: Account,
    open: usize,
    /// How many of the open calls need no credential.
    open_for_anyone: usize,
    swept_at: Instant,
}

/// What an address has used.
struct Account {
    calls: Bucket,
    refused_credentials: Bucket,
    open: usize,
    /// How many of the open calls need no credential.
    open_for_anyone: usize,
}

impl Account {
    fn new(limits: AddressLimits, now: Instant) -> Account {
        Account {
            calls: Bucket::new(limits.calls(), now),
            refused_credentials: Bucket::new(limits.refused_credentials(), now),
            open: 0,
            open_for_anyone: 0,
        }
    }

    /// Whether the account equals a new one, so that it can be dropped.
    fn may_be_forgotten(&mut self, limits: AddressLimits, now: Instant) -> bool {
        self.open == 0
            && self.calls.is_full(limits.calls(), now)
            && self
                .refused_credentials
                .is_full(limits.refused_credentials(), now)
    }
}

impl Origins {
    /// Returns the account of an address, and creates it if necessary. Also returns the address, or
    /// `None` if the account is the shared one.
    fn account_or_new(
        &mut self,
        origin: Origin,
        limits: AddressLimits,
        now: Instant,
    ) -> (&mut Account, Option<Origin>) {
        if self.known.len() >= ORIGINS && !self.known.contains_key(&origin) {
            if now.saturating_duration_since(self.swept_at) >= SWEEP_INTERVAL {
                self.swept_at = now;
                (self.known).retain(|_, account| !account.may_be_forgotten(limits, now));
            }
            if self.known.len() >= ORIGINS {
                return (&mut self.newcomers, None);
            }
        }
        let account = self.known.entry(origin);
        let account = account.or_insert_with(|| Account::new(limits, now));
        (account, Some(origin))
    }
}

impl RateLimits {
    pub(crate) fn new(limits: AddressLimits) -> RateLimits {
        let now = Instant::now();
        RateLimits(Arc::new(Shared {
            limits,
            origins: Mutex::new(Origins {
                known: HashMap::new(),
                newcomers: Account::new(limits, now),
                open: 0,
                open_for_anyone: 0,
                swept_at: now,
            }),
        }))
    }

    /// Returns how many calls are open.
    pub(crate) fn open_calls(&self) -> usize {
        self.lock().open
    }

    /// Counts a call, if the limits allow it. `is_for_anyone` says whether its method needs no
    /// credential.
    fn begin(
        &self,
        origin: Origin,
        is_for_anyone: bool,
        now: Instant,
    ) -> Result<OpenCall, CallError> {
        let limits = self.0.limits;
        let mut origins = self.lock();
        let (of_all, for_anyone) = (origins.open, origins.open_for_anyone);
        let (account, known) = origins.account_or_new(origin, limits, now);
        if let Err(retry_after) = account.calls.try_take(limits.calls(), now) {
            return Err(CallError::TooManyCalls {
                per_second: limits.calls_per_second,
                retry_after,
            });
        }
        let limit = limits.open_calls_of_address;
        if account.open >= limit.get() {
            return Err(CallError::TooManyOpenCallsOfAddress { limit });
        }
        let limit = limits.open_calls;
        if of_all >= limit.get() {
            return Err(CallError::TooManyOpenCalls { limit });
        }
        if is_for_anyone {
            let (limit, limit_of_address) = limits.open_for_anyone();
            if account.open_for_anyone >= limit_of_address.get() {
                let limit = limit_of_address;
                return Err(CallError::TooManyOpenCallsOfAddress { limit });
            }
            if for_anyone >= limit.get() {
                return Err(CallError::TooManyOpenCalls { limit });
            }
        }
        account.open += 1;
        account.open_for_anyone += usize::from(is_for_anyone);
        origins.open += 1;
        origins.open_for_anyone += usize::from(is_for_anyone);
        Ok(OpenCall {
            limits: self.clone(),
            known,
            is_for_anyone,
        })
    }

    /// Returns an error if no credential from this address may be checked now, valid or not,
    /// because too many were [rejected](Self::credential_refused).
    ///
    /// # Errors
    ///
    /// [`CallError::TooManyRefusedCredentials`], for the call.
    pub(crate) fn check_credential_limit(&self, peer: &Peer) -> Result<(), CallError> {
        let now = Instant::now();
        let mut origins = self.lock();
        let (account, _) = origins.account_or_new(peer.origin(), self.0.limits, now);
        match account
            .refused_credentials
            .wait(self.0.limits.refused_credentials(), now)
        {
            Some(retry_after) => Err(CallError::TooManyRefusedCredentials { retry_after }),
            None => Ok(()),
        }
    }

    /// Counts a credential from this address that was checked and rejected.
    pub(crate) fn credential_refused(&self, peer: &Peer) {
        let now = Instant::now();
        let mut origins = self.lock();
        let (account, _) = origins.account_or_new(peer.origin(), self.0.limits, now);
        account
            .refused_credentials
            .take(self.0.limits.refused_credentials(), 1.0, now);
    }

    fn lock(&self) -> MutexGuard<'_, Origins> {
        let origins = self.0.origins.lock();
        origins.unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open call. It counts until this is dropped.
pub(crate) struct OpenCall {
    limits: RateLimits,
    /// The address whose account counts the call; `None` for the shared account.
    known: Option<Origin>,
    is_for_anyone: bool,
}

impl<D, E> BodyObserver<D, E> for Option<OpenCall> {}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut origins = self.limits.lock();
        origins.open -= 1;
        origins.open_for_anyone -= usize::from(self.is_for_anyone);
        let account = match self.known {
            // An account with open calls is never forgotten.
            Some(origin) => origins.known.get_mut(&origin),
            None => Some(&mut origins.newcomers),
        };
        if let Some(account) = account {
            account.open -= 1;
            account.open_for_anyone -= usize::from(self.is_for_anyone);
        }
    }
}

/// Rejects calls over the limits of one address or of the whole server, before any credential is
/// checked.
#[derive(Clone)]
pub(crate) struct RateLimitLayer(Arc<Gate>);

struct Gate {
    limits: RateLimits,
    rules: Arc<Rules>,
    rejections: Rejections,
}

impl RateLimitLayer {
    /// Creates the layer. `rules` determine which methods need no credential.
    pub(crate) fn new(
        limits: RateLimits,
        rules: Arc<Rules>,
        rejections: Rejections,
    ) -> RateLimitLayer {
        RateLimitLayer(Arc::new(Gate {
            limits,
            rules,
            rejections,
        }))
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimitService<S>;

    fn layer(&self, inner: S) -> RateLimitService<S> {
        RateLimitService {
            inner,
            gate: Arc::clone(&self.0),
        }
    }
}

#[derive(Clone)]
pub(crate) struct RateLimitService<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S, A, B> Service<http::Request<A>> for RateLimitService<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>, Error = Infallible>,
    B: Body,
{
    type Response = http::Response<ObservedBody<B, Option<OpenCall>>>;
    type Error = Infallible;
    type Future = LayerFuture<S::Future, Option<OpenCall>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<A>) -> Self::Future {
        let info = CallInfo::of(request.extensions());
        let peer = info.peer.as_ref();
        let origin = peer.map_or(Origin::Unknown, Peer::origin);
        let Gate {
            limits,
            rules,
            rejections,
        } = &*self.gate;
        let is_for_anyone = rules.are_for_anyone(request.uri().path());
        match limits.begin(origin, is_for_anyone, Instant::now()) {
            Ok(open) => {
                let kept = match &info.open {
                    // The call is open until its response has been written, which may be long after
                    // the handler has returned it.
                    Some(call) => {
                        call.keep(open);
                        None
                    }
                    None => Some(open),
                };
                LayerFuture::pass(self.inner.call(request), kept)
            }
            Err(error) => {
                let rejection = rejections.reject(error, info.method.name(), peer, None);
                LayerFuture::reject(rejection.into_http())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn limits() -> RateLimits {
        RateLimits::new(AddressLimits {
            calls_per_second: NonZeroU32::new(10).unwrap(),
            open_calls: NonZeroUsize::new(6).unwrap(),
            open_calls_of_address: NonZeroUsize::new(4).unwrap(),
            refused_credentials_per_second: NonZeroU32::new(10).unwrap(),
        })
    }

    fn origin(number: u32) -> Origin {
        Origin::Network(IpAddr::V4(number.into()))
    }

    #[test]
    fn calls_are_open_until_they_are_dropped() {
        let limits = limits();
        let now = Instant::now();
        let begin = |number| limits.begin(origin(number), false, now);
        let mut open: Vec<OpenCall> = (0..4).map(|_| begin(1).unwrap()).collect();
        let limit = NonZeroUsize::new(4).unwrap();
        assert_eq!(
            begin(1).err(),
            Some(CallError::TooManyOpenCallsOfAddress { limit })
        );
        open.extend((0..2).map(|_| begin(2).unwrap()));
        let limit = NonZeroUsize::new(6).unwrap();
        assert_eq!(begin(3).err(), Some(CallError::TooManyOpenCalls { limit }));
        open.pop();
        assert!(begin(3).is_ok());
        assert_eq!(limits.open_calls(), 5);
        drop(open);
        assert_eq!(limits.open_calls(), 0);
    }

    #[test]
    fn callers_without_a_credential_leave_calls_for_others() {
        let limits = limits();
        let now = Instant::now();
        let open = limits.begin(origin(1), true, now);
        let limit = NonZeroUsize::new(1).unwrap();
        let again = limits.begin(origin(1), true, now);
        assert_eq!(
            again.err(),
            Some(CallError::TooManyOpenCallsOfAddress { limit })
        );
        let second = limits.begin(origin(2), true, now);
        assert_eq!(second.err(), Some(CallError::TooManyOpenCalls { limit }));
        let others: Vec<_> = (0..4)
            .map(|_| limits.begin(origin(2), false, now))
            .collect();
        assert!(others.iter().all(Result::is_ok));
        drop(open);
        assert!(limits.begin(origin(3), true, now).is_ok());
    }

    #[test]
    fn an_address_may_call_again_after_the_retry_delay() {
        let limits = limits();
        let now = Instant::now();
        for _ in 0..10 {
            limits.begin(origin(1), false, now).unwrap();
        }
        let Err(CallError::TooManyCalls { retry_after, .. }) = limits.begin(origin(1), false, now)
        else {
            panic!("an eleventh call at once");
        };
        assert!(limits.begin(origin(2), false, now).is_ok());
        // Rounded up, because the bucket calculates in fractions.
        let back = now + retry_after + Duration::from_nanos(1);
        assert!(limits.begin(origin(1), false, back).is_ok());
        assert!(limits.begin(origin(1), false, back).is_err());
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_spares_known_ones() {
        let limits = limits();
        let now = Instant::now();
        let many = u32::try_from(ORIGINS).unwrap();
        for number in 0..many {
            limits.begin(origin(number), false, now).unwrap();
        }
        // Further addresses share one account.
        let newcomers =
            (0..1000).filter(|number| limits.begin(origin(many + number), false, now).is_ok());
        assert_eq!(newcomers.count(), 10);
        assert_eq!(limits.lock().known.len(), ORIGINS);
        assert!(limits.begin(origin(7), false, now).is_ok());
        // An account with an open call is kept.
        let later = now + SWEEP_INTERVAL;
        let known = limits.begin(origin(7), false, later).unwrap();
        let newcomer = limits.begin(origin(many), false, later).unwrap();
        // All other addresses are forgotten by then.
        assert_eq!(limits.lock().known.len(), 2);
        drop((known, newcomer));
        assert_eq!(limits.open_calls(), 0);
        assert_eq!(limits.lock().newcomers.open, 0);
    }

    #[test]
    fn after_many_rejected_credentials_none_is_checked() {
        let limits = limits();
        let peer = Peer::unknown();
        let mut refused = 0;
        while limits.check_credential_limit(&peer).is_ok() {
            limits.credential_refused(&peer);
            refused += 1;
            assert!(refused < 1000, "the limit never applies");
        }
        assert!(refused >= 100, "{refused}");
        // Calls are counted separately.
        assert!(limits.begin(peer.origin(), false, Instant::now()).is_ok());
    }
}

//! Estimates the growth rate of a noisy series.

use fastrand::Rng;

/// Number of consecutive points that are resampled together. High memory use persists for a while,
/// so resampling single points would make the interval much too narrow.
const BLOCK: usize = 10;

/// Number of resampled series for the interval.
const RESAMPLES: usize = 400;

/// A slope with its 95% confidence interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slope {
    pub(crate) estimate: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Slope {
    /// Returns the Theil-Sen estimate: the median of the slopes between all pairs of points. It is
    /// robust against outliers as long as they are fewer than 29% of the points. The interval comes
    /// from a block bootstrap: the slope is estimated again for many made-up series, each of which
    /// is the estimated line plus random blocks of the residuals. Returns `None` for fewer than two
    /// blocks of points.
    pub(crate) fn of(points: &[(f64, f64)]) -> Option<Slope> {
        if points.len() < 2 * BLOCK {
            return None;
        }
        let estimate = theil_sen(points)?;
        let residuals: Vec<f64> = points.iter().map(|(x, y)| y - estimate * x).collect();
        // With a fixed seed, the same points give the same interval.
        let mut random = Rng::with_seed(0);
        let mut slopes: Vec<f64> = (0..RESAMPLES)
            .filter_map(|_| {
                let blocks = std::iter::repeat_with(|| {
                    let at = random.usize(..=residuals.len() - BLOCK);
                    residuals.get(at..at + BLOCK).unwrap_or_default()
                });
                let noise = blocks.take(points.len().div_ceil(BLOCK)).flatten();
                let made_up = points.iter().zip(noise);
                let made_up = made_up.map(|((x, _), noise)| (*x, estimate * x + noise));
                theil_sen(&made_up.collect::<Vec<_>>())
            })
            .collect();
        slopes.sort_unstable_by(f64::total_cmp);
        let quantile = |share: f64| slopes.get((slopes.len() as f64 * share) as usize).copied();
        Some(Slope {
            estimate,
            low: quantile(0.025)?,
            high: quantile(0.975)?,
        })
    }
}

fn theil_sen(points: &[(f64, f64)]) -> Option<f64> {
    let pairs = points.iter().enumerate().flat_map(|(at, (x, y))| {
        let later = points.iter().skip(at + 1);
        later.map(move |(later_x, later_y)| (later_y - y) / (later_x - x))
    });
    median(pairs.collect())
}

/// Returns the median. For an even number of values, this is the higher of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    let middle = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    let (_, median, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    Some(*median)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(count: u32, value: impl FnMut(f64) -> f64) -> Vec<(f64, f64)> {
        let times: Vec<f64> = (0..count).map(f64::from).collect();
        let values: Vec<f64> = times.iter().copied().map(value).collect();
        times.into_iter().zip(values).collect()
    }

    #[test]
    fn a_line_is_estimated_exactly() {
        let slope = Slope::of(&points(150, |x| 7.0 + 0.25 * x)).unwrap();
        for found in [slope.estimate, slope.low, slope.high] {
            assert!((found - 0.25).abs() < 1e-9, "{slope:?}");
        }
    }

    #[test]
    fn outliers_do_not_change_the_estimate() {
        let off = |x: f64| if x % 5.0 == 0.0 { 1000.0 } else { 0.0 };
        let slope = Slope::of(&points(150, |x| 0.25 * x + off(x))).unwrap();
        assert!((slope.estimate - 0.25).abs() < 0.01, "{slope:?}");
    }

    #[test]
    fn the_interval_contains_the_slope_despite_correlated_noise() {
        let mut held = 0;
        for seed in 0..20 {
            let mut random = Rng::with_seed(seed);
            let mut noise = 0.0;
            let made = points(60, |x| {
                noise = 0.7 * noise + random.f64() - 0.5;
                0.01 * x + noise
            });
            let slope = Slope::of(&made).unwrap();
            held += u32::from((slope.low..=slope.high).contains(&0.01));
        }
        assert!(held >= 15, "{held} of 20");
    }

    #[test]
    fn too_few_points_have_no_slope() {
        assert!(Slope::of(&points(19, |x| x)).is_none());
    }
}

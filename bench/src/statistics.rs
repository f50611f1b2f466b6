//! Quantiles of measurements, and ratios of paired ones with their confidence intervals.
//!
//! The logarithms of the ratios of pairs are taken as normally distributed: a machine that is twice as slow during one pair
//! is so for both of its runs. Student's t distribution gives the interval of their mean (W. S. Gosset, "The probable error
//! of a mean", Biometrika 6, 1908); the interval of the ratio is its exponential.

/// A ratio with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ratio {
    /// Geometric mean of the ratios.
    pub(crate) mean: f64,
    /// Lower end of the interval; 0 with fewer than two pairs.
    pub(crate) low: f64,
    /// Upper end of the interval; infinite with fewer than two pairs.
    pub(crate) high: f64,
}

impl Ratio {
    /// Estimates the ratio second / first of pairs. `None` if no pair has two positive values.
    pub(crate) fn of(pairs: &[(f64, f64)]) -> Option<Self> {
        let logs: Vec<f64> = pairs
            .iter()
            .filter(|(first, second)| *first > 0.0 && *second > 0.0)
            .map(|(first, second)| (second / first).ln())
            .collect();
        let count = logs.len();
        if count == 0 {
            return None;
        }
        let mean = logs.iter().sum::<f64>() / count as f64;
        if count == 1 {
            return Some(Self { mean: mean.exp(), low: 0.0, high: f64::INFINITY });
        }
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
        let half = t_975(count - 1) * (variance / count as f64).sqrt();
        Some(Self { mean: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() })
    }
}

/// Returns a quantile of sorted values: the smallest one that at least this share of them does not exceed.
pub(crate) fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Quantile 0.975 of Student's t distribution by degrees of freedom, 1 to 30; the value for 30 is used beyond, which makes
/// intervals slightly too wide. From the tables in *NIST/SEMATECH e-Handbook of Statistical Methods*, 1.3.6.7.2.
fn t_975(degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
        2.045, 2.042,
    ];
    TABLE[degrees.clamp(1, TABLE.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pairs_have_a_ratio_of_one_without_doubt() {
        let ratio = Ratio::of(&[(2.0, 2.0), (5.0, 5.0), (1.0, 1.0)]).unwrap();
        assert_eq!((ratio.mean, ratio.low, ratio.high), (1.0, 1.0, 1.0));
    }

    #[test]
    fn an_interval_is_that_of_the_t_distribution() {
        // Logarithms 0.1 and 0.3: mean 0.2, standard error 0.1, t(1) = 12.706.
        let ratio = Ratio::of(&[(1.0, 0.1_f64.exp()), (1.0, 0.3_f64.exp())]).unwrap();
        assert!((ratio.mean.ln() - 0.2).abs() < 1e-9);
        assert!((ratio.high.ln() - (0.2 + 1.2706)).abs() < 1e-9);
        assert!((ratio.low.ln() - (0.2 - 1.2706)).abs() < 1e-9);
    }

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let values: Vec<u32> = (1..=200).collect();
        let quantiles = [0.0, 0.5, 0.9, 0.99, 1.0].map(|share| quantile(&values, share));
        assert_eq!(quantiles, [1, 100, 180, 198, 200].map(Some));
        assert_eq!(quantile(&[7], 0.5), Some(7));
        assert_eq!(quantile::<u32>(&[], 0.5), None);
    }

    #[test]
    fn one_pair_says_nothing_about_its_spread() {
        let ratio = Ratio::of(&[(2.0, 3.0), (0.0, 1.0)]).unwrap();
        assert_eq!((ratio.mean, ratio.low), (1.5, 0.0));
        assert!(ratio.high.is_infinite());
        assert_eq!(Ratio::of(&[(0.0, 1.0)]), None);
    }
}

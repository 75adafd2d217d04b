//! The median of a few figures, and how far they lie apart.

/// What the figures of several rounds come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one; between the two middle ones where their number is even.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub greatest: f64,
}

impl Spread {
    /// The spread of figures in any order; `None` of no figures, or of one that is no number.
    #[must_use]
    pub fn of(figures: &[f64]) -> Option<Self> {
        if figures.iter().any(|figure| !figure.is_finite()) {
            return None;
        }
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(*sorted.get(middle - 1)?, upper)
        } else {
            upper
        };
        Some(Self {
            median,
            least: *sorted.first()?,
            greatest: *sorted.last()?,
        })
    }

    /// As it stands in a table: the median with three digits that count, and the span unless
    /// there was one figure only.
    #[must_use]
    pub fn cell(&self) -> String {
        let median = shortly(self.median);
        if self.least.total_cmp(&self.greatest).is_eq() {
            return median;
        }
        let (least, greatest) = (shortly(self.least), shortly(self.greatest));
        format!("{median} ({least}..{greatest})")
    }
}

/// A figure with three digits that count, and thousands set apart.
#[must_use]
pub fn shortly(figure: f64) -> String {
    let size = figure.abs();
    if size >= 999.5 {
        return in_thousands(figure);
    }
    let digits = match size {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        // Not 0.000: what is there is not nothing.
        size if size > 0.0 && size < 0.0995 => 4,
        _ => 3,
    };
    let text = format!("{figure:.digits$}");
    if text.contains('.') {
        let text = text.trim_end_matches('0');
        return text.trim_end_matches('.').to_owned();
    }
    text
}

fn in_thousands(figure: f64) -> String {
    let whole = format!("{:.0}", figure.abs());
    let mut text = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if figure < 0.0 {
        text.insert(0, '-');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_whatever_the_order() {
        let odd = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.least, odd.greatest), (2.0, 1.0, 3.0));
        let even = Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.median, even.least, even.greatest), (2.5, 1.0, 4.0));
    }

    #[test]
    fn nothing_has_no_median_and_neither_has_what_is_no_number() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
        assert_eq!(Spread::of(&[f64::INFINITY]), None);
    }

    #[test]
    fn a_cell_shows_three_digits_and_the_span() {
        let cell = |figures: &[f64]| Spread::of(figures).unwrap().cell();
        assert_eq!(cell(&[1234.5, 999.6, 20_000.0]), "1,234 (1,000..20,000)");
        assert_eq!(cell(&[0.25, 0.2, 0.3]), "0.25 (0.2..0.3)");
        assert_eq!(cell(&[13.53]), "13.5");
        assert_eq!(cell(&[0.0]), "0");
        assert_eq!(cell(&[0.0123]), "0.0123");
        assert_eq!(cell(&[1_234_567.0]), "1,234,567");
    }
}

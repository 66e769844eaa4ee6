//! The picture: a bar for each layer and direction, and what the device can do across them.

use super::{Access, LayerRow, Roofline};
use crate::bench::plot::{Bar, chart};

/// Draws it.
pub(super) fn draw(roofline: &Roofline) -> Result<String, String> {
    let bar = |row: &LayerRow| Bar {
        label: format!(
            "{}, {}",
            row.layer.name(),
            if row.access == Access::Read { "read" } else { "write" }
        ),
        access: row.access,
        spread: row.series.spread(),
        note: format!("({:.2} of the device)", roofline.share(row)),
        apart: false,
    };
    let bars: Vec<Bar> = roofline.rows.iter().map(bar).collect();
    let device = [Access::Write, Access::Read].map(|access| (access, roofline.device(access)));
    let limits = roofline.limits();
    let below: Vec<&str> = limits.split("; ").collect();
    let title = "Layers of swapfs, medians; dashed: the device";
    chart(title, &bars, &device, &below)
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::draw;

    #[test]
    fn every_row_has_a_bar_and_tags_are_closed() {
        let svg = draw(&example(3.0)).unwrap();
        assert_eq!(svg.matches(" of the device)").count(), 9);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.contains("device, own ring, write") && svg.contains("0.75 of the device"));
    }
}

//! The pictures.

use plotters::{coord::Shift, prelude::*};
use std::{error::Error, path::Path};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Size of a panel, and of the line above them all, in pixels.
const PANEL: (u32, u32) = (760, 450);
const TITLE_HEIGHT: u32 = 44;
const CAPTION_HEIGHT: u32 = 30;
const FONT: &str = "Helvetica, Arial, sans-serif";
const TITLE_PX: u32 = 20;
const CAPTION_PX: u32 = 16;
const LABEL_PX: u32 = 13;
/// A line of the legend: its height, the length of its stroke, and what a letter takes, about.
const LEGEND_HEIGHT: u32 = 22;
const STROKE_PX: i32 = 24;
const LETTER_PX: f64 = 6.6;
const INK: RGBColor = RGBColor(40, 44, 52);
const GRID: RGBColor = RGBColor(228, 231, 235);
/// Colours that people with any colour vision tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
/// What ours is measured against.
const LIMIT_COLOURS: [RGBColor; 2] = [RGBColor(70, 74, 80), RGBColor(150, 155, 162)];

/// One line of a panel.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// Ours is measured against it: drawn in grey.
    pub(crate) limit: bool,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What stands along the lower edge of a panel, on a logarithmic scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Across {
    BlockSize,
    Microseconds,
    Accounts,
}

/// One diagram.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    caption: String,
    across: Across,
    up: String,
    curves: Vec<Curve>,
}

impl Panel {
    pub(crate) fn throughput(work: &str, curves: Vec<Curve>) -> Self {
        Self { caption: capital(work), across: Across::BlockSize, up: "GB/s".into(), curves }
    }

    pub(crate) fn latencies(caption: &str, curves: Vec<Curve>) -> Self {
        let up = "share of opens that took no longer, %".into();
        Self { caption: caption.into(), across: Across::Microseconds, up, curves }
    }

    pub(crate) fn by_accounts(caption: &str, up: &str, curves: Vec<Curve>) -> Self {
        Self { caption: caption.into(), across: Across::Accounts, up: up.into(), curves }
    }

    /// Of its curves.
    fn colours(&self) -> impl Iterator<Item = RGBColor> {
        let (mut colours, mut greys) = (COLOURS.iter().cycle(), LIMIT_COLOURS.iter().cycle());
        self.curves.iter().map(move |curve| *if curve.limit { greys.next() } else { colours.next() }.unwrap_or(&INK))
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.curves.iter().flat_map(|curve| &curve.points)
    }
}

impl Across {
    const fn label(self) -> &'static str {
        match self {
            Self::BlockSize => "bytes in a block",
            Self::Microseconds => "time from request to answer",
            Self::Accounts => "accounts in the index",
        }
    }

    const fn base(self) -> f64 {
        if let Self::BlockSize = self { 2.0 } else { 10.0 }
    }

    fn show(self, value: f64) -> String {
        let (units, step): (&[&str], f64) = match self {
            Self::BlockSize => (&["B", "KiB", "MiB"], 1024.0),
            Self::Microseconds => (&["µs", "ms", "s"], 1000.0),
            Self::Accounts if (1000.0..1e6).contains(&value) => return format!("{:.0},000", value / 1000.0),
            Self::Accounts => (&["", "million"], 1e6),
        };
        let (mut value, mut place) = (value, 0);
        while value >= step && place + 1 < units.len() {
            (value, place) = (value / step, place + 1);
        }
        format!("{} {}", (value * 100.0).round() / 100.0, units[place]).trim().to_owned()
    }
}

/// Draws panels side by side under one title.
pub(crate) fn draw(path: &Path, title: &str, panels: &[Panel]) -> Result {
    let columns = panels.len() as u32;
    let size = (PANEL.0 * columns, PANEL.1 + TITLE_HEIGHT);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(TITLE_HEIGHT);
    head.draw(&Text::new(title.to_owned(), (16, 14), (FONT, TITLE_PX).into_font().style(FontStyle::Bold).color(&INK)))?;
    for (panel, area) in panels.iter().zip(body.split_evenly((1, panels.len()))) {
        draw_panel(&area, panel)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(area: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel) -> Result {
    let caption = (FONT, CAPTION_PX).into_font().style(FontStyle::Bold).color(&INK);
    let (head, body) = area.split_vertically(CAPTION_HEIGHT);
    head.draw(&Text::new(panel.caption.clone(), (78, 6), caption))?;
    let legend = if panel.curves.len() > 1 { draw_legend(&body, panel)? } else { 0 };
    let (_, area) = body.split_vertically(legend);
    let across = panel.across;
    let left = panel.points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let right = panel.points().map(|point| point.0).fold(0.0, f64::max);
    let top = panel.points().map(|point| point.1).fold(0.0, f64::max);
    let top = if panel.up.ends_with('%') { 100.0 } else { top * 1.12 };
    let mut chart = ChartBuilder::on(&area)
        .margin(14)
        .margin_right(40)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d((left..right * 1.02).log_scale().base(across.base()), 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style((FONT, LABEL_PX).into_font().color(&INK))
        .x_desc(across.label())
        .x_labels(12)
        .x_label_formatter(&|value| across.show(*value))
        .y_desc(&panel.up)
        .y_labels(6)
        .y_label_formatter(&|value| format!("{}", (value * 100.0).round() / 100.0))
        .draw()?;
    for (curve, colour) in panel.curves.iter().zip(panel.colours()) {
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?;
        if across != Across::Microseconds {
            chart.draw_series(curve.points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    Ok(())
}

/// Names the curves, in rows above the diagram, where no curve can run through it. Gives the height that they take.
fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel) -> Result<u32> {
    const LEFT: i32 = 78;
    let (width, style) = (area.dim_in_pixel().0 as i32, (FONT, LABEL_PX).into_font().color(&INK));
    let (mut x, mut y) = (LEFT, LEGEND_HEIGHT as i32 / 2);
    for (curve, colour) in panel.curves.iter().zip(panel.colours()) {
        let wide = STROKE_PX + 8 + (curve.name.chars().count() as f64 * LETTER_PX) as i32 + 20;
        if x > LEFT && x + wide > width {
            (x, y) = (LEFT, y + LEGEND_HEIGHT as i32);
        }
        area.draw(&PathElement::new([(x, y), (x + STROKE_PX, y)], colour.stroke_width(3)))?;
        area.draw(&Text::new(curve.name.clone(), (x + STROKE_PX + 8, y - LABEL_PX as i32 / 2), style.clone()))?;
        x += wide;
    }
    Ok(y as u32 + LEGEND_HEIGHT / 2)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

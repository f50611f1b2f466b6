//! Styles: few colours, and none where the terminal or the person wants none. A colour only repeats what a word says.

use ratatui::style::{Color, Modifier, Style};

use super::listing::Mood;

/// Styles, with colours or without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    pub(super) coloured: bool,
}

impl Paint {
    pub(super) fn mood(self, mood: Mood) -> Style {
        let colour = match mood {
            Mood::Plain => return Style::new(),
            Mood::Good => Color::Green,
            Mood::Warning => Color::Yellow,
            Mood::Bad => Color::Red,
        };
        if self.coloured { Style::new().fg(colour) } else { Style::new() }
    }

    /// Returns the style of the selected line: it is reversed, so it needs no colour.
    pub(super) fn selected() -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub(super) fn heading() -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }
}

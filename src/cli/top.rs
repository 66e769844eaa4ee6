//! `swapfs top`: a mount and its partitions on the whole screen.

mod model;
mod view;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::Failure;
use super::watch::{Sample, parse_seconds, read_json};
use crate::sys_process::reason;
use model::{Model, Sort};

/// Arguments of `swapfs top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Seconds between two looks, 0.1 at least.
    #[arg(long, value_name = "S", default_value = "1", value_parser = parse_seconds)]
    pub interval: Duration,
    /// What to sort by at first.
    #[arg(long, value_enum, default_value_t = Sort::Traffic)]
    pub sort: Sort,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Quit,
    Sort(Sort),
    Reverse,
    Pause,
    /// Lines down, or up.
    Move(i32),
    First,
    Last,
}

impl TopArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        // Before the terminal is taken over: what is wrong can still be told.
        let model = Model::new(&self.mountpoint, self.sort, look(&self.mountpoint)?);
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            let line = "top needs a terminal; stats prints lines anywhere";
            return Err(Failure::Failed(line.to_owned()));
        }
        // Gives the terminal back when the program panics, too.
        let terminal =
            ratatui::try_init().map_err(|error| format!("the terminal: {}", reason(&error)))?;
        let outcome = self.watch(terminal, model);
        ratatui::restore();
        outcome
    }

    fn watch(&self, mut terminal: DefaultTerminal, mut model: Model) -> Result<(), Failure> {
        let failed = |error: std::io::Error| format!("the terminal: {}", reason(&error));
        let mut next = Instant::now() + self.interval;
        loop {
            terminal.draw(|frame| view::draw(frame, &mut model)).map_err(failed)?;
            let wait = next.saturating_duration_since(Instant::now());
            if event::poll(wait).map_err(failed)? {
                if let Event::Key(key) = event::read().map_err(failed)?
                    && let Some(wish) = wish(key)
                    && !model.grant(wish)
                {
                    return Ok(());
                }
                continue;
            }
            next = Instant::now() + self.interval;
            if !model.is_paused() {
                let (sample, partitions) = look(&self.mountpoint)?;
                model.update(sample, &partitions);
            }
        }
    }
}

fn look(mountpoint: &Path) -> Result<(Sample, serde_json::Value), Failure> {
    Ok((Sample::take(mountpoint)?, read_json(mountpoint, "partitions.json")?))
}

fn wish(key: KeyEvent) -> Option<Wish> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c') if control => Wish::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Wish::Quit,
        KeyCode::Char(' ' | 'p') => Wish::Pause,
        KeyCode::Char('R') => Wish::Reverse,
        KeyCode::Char(letter) if Sort::of_key(letter).is_some() => {
            Wish::Sort(Sort::of_key(letter)?)
        }
        KeyCode::Up | KeyCode::Char('k') => Wish::Move(-1),
        KeyCode::Down | KeyCode::Char('j') => Wish::Move(1),
        KeyCode::PageUp => Wish::Move(-10),
        KeyCode::PageDown => Wish::Move(10),
        KeyCode::Home => Wish::First,
        KeyCode::End => Wish::Last,
        _ => return None,
    })
}

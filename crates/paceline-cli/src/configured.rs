//! `config check`, `config show` and `trust`.

use paceline::config::{ConfigError, Problem, ProblemKind};

use crate::{
    args::{Check, ConfigCommand, Show, Trust},
    document::{self, document},
    failure::Failure,
    settings::{Files, ProjectFile, Settings, Trusted},
    ui::{Cell, Style, Ui, one_line},
};

/// Checks or shows the configuration.
pub fn config(settings: &Settings, command: ConfigCommand, ui: &Ui) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(check) => self::check(settings, check, ui),
        ConfigCommand::Show(show) => self::show(settings, &show, ui),
    }
}

fn check(settings: &Settings, check: Check, ui: &Ui) -> Result<(), Failure> {
    let mut settings = settings.clone();
    if let Some(path) = check.file {
        settings.files = Files { project: Some(ProjectFile::named(&path)?), ..settings.files };
    }
    let checked = settings
        .draft(false)
        .map_err(problems)
        .and_then(|draft| draft.validate(&paceline::capabilities()).map_err(|error| Ok(error.problems)));
    let found = match checked {
        Ok(_) => Vec::new(),
        Err(Ok(problems)) => problems,
        Err(Err(failure)) => return Err(failure),
    };
    let files = files_of(&settings);
    if ui.json {
        ui.document(&document(document::Checked {
            ok: found.is_empty(),
            files,
            problems: found.iter().map(document_of).collect(),
        }))?;
    } else if found.is_empty() {
        let what = if files.is_empty() { "no file; the defaults hold".to_owned() } else { files.join(", ") };
        ui.note(&format!("valid: {what}"));
    }
    if found.is_empty() {
        return Ok(());
    }
    if !ui.json {
        ui.failed(&Failure::Config(ConfigError { problems: found }));
    }
    Err(Failure::Told)
}

fn problems(failure: Failure) -> Result<Vec<Problem>, Failure> {
    match failure {
        Failure::Config(error) => Ok(error.problems),
        other => Err(other),
    }
}

fn files_of(settings: &Settings) -> Vec<String> {
    let user = settings.files.user.iter().map(|(path, _)| path);
    user.chain(settings.files.project.iter().map(|project| &project.path))
        .map(|path| path.display().to_string())
        .collect()
}

fn document_of(problem: &Problem) -> document::Problem {
    document::Problem {
        kind: match problem.kind {
            ProblemKind::Syntax => "syntax",
            ProblemKind::UnknownKey => "unknown_key",
            ProblemKind::Missing => "missing",
            ProblemKind::Value => "value",
            ProblemKind::Reference => "reference",
            ProblemKind::Duplicate => "duplicate",
            ProblemKind::Relation => "relation",
            ProblemKind::Unbuilt => "unbuilt",
            ProblemKind::Untrusted => "untrusted",
        },
        key: problem.key.clone(),
        origin: problem.origin.to_string(),
        what: problem.what.clone(),
        nearest: problem.nearest.clone(),
        allowed: problem.allowed.clone(),
        fix: problem.fix.clone(),
    }
}

fn show(settings: &Settings, show: &Show, ui: &Ui) -> Result<(), Failure> {
    let mut entries = settings.config()?.entries();
    if let Some(prefix) = &show.prefix {
        entries.retain(|entry| {
            let rest = entry.key.strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
    }
    if ui.json {
        let entries = entries.iter().map(|entry| document::Entry {
            key: entry.key.clone(),
            value: entry.value.clone(),
            origin: entry.origin.to_string(),
            layer: entry.origin.layer().to_string(),
        });
        return ui.document(&document(document::Shown { entries: entries.collect() }));
    }
    let rows: Vec<Vec<Cell>> = entries
        .iter()
        .map(|entry| {
            let default = entry.origin.layer() == paceline::config::Layer::Default;
            let style = if default { Style::Dim } else { Style::Good };
            let mut row =
                vec![Cell::new(entry.key.clone()).style(Style::Bold), Cell::new(entry.value.clone())];
            if show.origin {
                row.push(Cell::new(entry.origin.to_string()).style(style));
            }
            row
        })
        .collect();
    ui.table(if show.origin { &["KEY", "VALUE", "ORIGIN"] } else { &["KEY", "VALUE"] }, &rows)
}

/// Shows what a file asks for that needs trust, and trusts it with that.
pub fn trust(settings: &Settings, trust: Trust, ui: &Ui) -> Result<(), Failure> {
    let project = match trust.file {
        Some(path) => ProjectFile::named(&path)?,
        None => settings.files.project.clone().ok_or_else(|| {
            Failure::failed("there is no paceline.toml in this directory or above it; name a file to trust")
        })?,
    };
    let asked = settings.untrusted(&project)?;
    let mut trusted = Trusted::read()?;
    let before = asked.is_empty() || trusted.holds(&project.path, &asked);
    if !trust.list && !before {
        trusted.add(&project.path, &asked)?;
    }
    let now = before || !trust.list;
    if ui.json {
        return ui.document(&document(document::Trusts {
            file: project.path.display().to_string(),
            trusted: now,
            asks: asked
                .iter()
                .map(|it| document::Asks {
                    key: it.key.clone(),
                    why: it.why.to_string(),
                    value: it.value.clone(),
                    origin: it.origin.to_string(),
                })
                .collect(),
        }));
    }
    let rows: Vec<Vec<Cell>> = asked
        .iter()
        .map(|it| {
            vec![
                Cell::new(it.key.clone()).style(Style::Bold),
                Cell::new(it.why.to_string()).style(Style::Warn),
                Cell::new(it.value.clone()),
                Cell::new(it.origin.to_string()).style(Style::Dim),
            ]
        })
        .collect();
    if !rows.is_empty() {
        ui.table(&["KEY", "WHAT IT DOES", "VALUE", "WHERE"], &rows)?;
    }
    let name = one_line(&project.path.display().to_string());
    ui.note(&match (asked.is_empty(), now) {
        (true, _) => format!("{name} asks for nothing that needs trust"),
        (false, true) => format!("{name} is trusted with this, and with nothing else"),
        (false, false) => format!("{name} is not trusted; `paceline trust {name}` trusts it"),
    });
    Ok(())
}

//! `doctor`: looks at the files of a group, at what its sessions say, and names what is wrong and what to do.
//!
//! The files are looked at first and need nobody's answer, so that a frozen or broken group is told from them alone.

mod files;
mod report;
mod sessions;

use paceline_ipc::dirs::StateDir;

use crate::{
    document::{Doctor, Finding, document},
    failure::Failure,
    settings::Settings,
    ui::Ui,
};

/// Looks, tells, and fails with exit code 10 if something was found.
pub async fn doctor(settings: &Settings, ui: &Ui) -> Result<(), Failure> {
    let mut findings = Vec::new();
    let dir = match settings.find_dir() {
        Ok(dir) => dir,
        Err(Failure::Refused(why)) => {
            findings.push(Finding::new(
                "directory",
                format!("the state directory cannot be used: {why}"),
                "do what it says, then run doctor again",
            ));
            None
        }
        Err(failure) => return Err(failure),
    };
    let mut doctor = Doctor::new(settings.group.to_string(), files::directory(settings, dir.as_ref()));
    doctor.others = files::other_groups(settings, dir.as_ref(), &mut findings);
    if let Some(dir) = &dir {
        look(settings, dir, &mut doctor, &mut findings, ui).await?;
    }
    doctor.findings = findings;
    if ui.json {
        ui.document(&document(&doctor))?;
    } else {
        report::print(&doctor, ui)?;
    }
    match doctor.findings.len() {
        0 if doctor.holder.is_some() => Ok(()),
        0 => Err(settings.no_group()),
        count => Err(Failure::Findings { count }),
    }
}

async fn look(
    settings: &Settings,
    dir: &StateDir,
    doctor: &mut Doctor,
    findings: &mut Vec<Finding>,
    ui: &Ui,
) -> Result<(), Failure> {
    doctor.elections = files::elections(dir, findings);
    doctor.sessions = files::live_sessions(dir);
    let holder = files::holder(dir, &doctor.sessions, findings);
    files::stuck(dir, holder.is_some(), findings);
    files::space(dir, findings);
    doctor.holder = holder;
    if let Some(holder) = &mut doctor.holder {
        if holder.stopped == Some(true) {
            holder.answers = Some(false);
            return Ok(());
        }
        sessions::ask(settings, doctor, findings, ui).await?;
    }
    Ok(())
}

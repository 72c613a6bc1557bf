//! Starting a coordinator in the background, one for all who want one at the same time.

use std::{
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use paceline_ipc::{dirs::StateDir, start::StartGuard};
use tokio::sync::oneshot;

use crate::{args::IdleExit, failure::Failure, group, settings::Settings, ui::Ui};

/// Between two tries to take the guard, and between two looks whether the new coordinator leads.
const STEP: Duration = Duration::from_millis(5);
/// A foreground coordinator waits so long for another start to end. Two coordinators are no harm, only one too many.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns when the group runs; starts a coordinator if nobody else does.
///
/// # Errors
/// [`Failure::Failed`] when the coordinator ends at once, with where it said why.
pub async fn ensure(settings: &Settings, ui: &Ui) -> Result<(), Failure> {
    // Told here, where somebody reads it.
    settings.leading_config()?;
    let dir = settings.open_dir()?;
    let _guard = loop {
        if let Some(guard) = take(&dir)? {
            break guard;
        }
        if group::is_owned(&dir) {
            return Ok(());
        }
        tokio::time::sleep(STEP).await;
    };
    if group::is_owned(&dir) {
        return Ok(());
    }
    start(settings, &dir, ui).await
}

/// The guard for a coordinator in the foreground, or nothing if another start takes too long.
///
/// # Errors
/// As the file system.
pub async fn guard(dir: &StateDir) -> Result<Option<StartGuard>, Failure> {
    let mut waited = Duration::ZERO;
    loop {
        match take(dir)? {
            Some(guard) => return Ok(Some(guard)),
            None if waited >= PATIENCE => return Ok(None),
            None => tokio::time::sleep(STEP).await,
        }
        waited += STEP;
    }
}

fn take(dir: &StateDir) -> Result<Option<StartGuard>, Failure> {
    StartGuard::try_take(dir).map_err(|error| {
        Failure::failed(format!("failed to take the guard {}: {error}", dir.start_lock().display()))
    })
}

async fn start(settings: &Settings, dir: &StateDir, ui: &Ui) -> Result<(), Failure> {
    let (pid, mut ended) = spawn(settings)?;
    while !group::is_owned(dir) {
        tokio::select! {
            biased;
            status = &mut ended => return Err(failed(dir, status.ok())),
            () = tokio::time::sleep(STEP) => {}
        }
    }
    let group = &settings.group;
    let leaves = match settings.idle_exit {
        IdleExit::Never => String::new(),
        IdleExit::After(time) => {
            format!("; it leaves when nobody used the group for {}", humantime::format_duration(time))
        }
    };
    ui.say(&format!(
        "paceline: no group {group:?} was running: started a coordinator, process {pid}{leaves}",
        group = group.as_str()
    ));
    Ok(())
}

/// Starts this program again, without our terminal and input and output, and tells when it ends.
fn spawn(settings: &Settings) -> Result<(u32, oneshot::Receiver<ExitStatus>), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("failed to start a coordinator: {error}"));
    let idle_exit = match settings.idle_exit {
        IdleExit::Never => "never".to_owned(),
        IdleExit::After(time) => format!("{}ms", time.as_millis()),
    };
    let mut child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(["run", "--background", "--idle-exit", &idle_exit])
        .args(settings.as_arguments())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let (tell, ended) = oneshot::channel();
    let pid = child.id();
    // Waits also to leave no zombie behind while a long command such as `watch` goes on.
    std::thread::spawn(move || {
        if let Ok(status) = child.wait() {
            // The starter may have what it wanted long ago.
            let _ = tell.send(status);
        }
    });
    Ok((pid, ended))
}

fn failed(dir: &StateDir, status: Option<ExitStatus>) -> Failure {
    if status.and_then(|status| status.code()) == Some(Failure::Version(String::new()).code().into()) {
        // What it found is found again where somebody reads it.
        return Failure::Version(format!(
            "the group was led by a newer build, and the coordinator that was started cannot read its store; update this \
             program, or start a session of a newer build (details in {})",
            dir.run_log().display()
        ));
    }
    let how = status.map_or_else(|| "ended".to_owned(), |status| format!("ended with {status}"));
    Failure::failed(format!("the coordinator {how}; it says why in {}", dir.run_log().display()))
}

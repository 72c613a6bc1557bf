//! `get KEY -- CMD`: a cache around a command that all who want the same share. Whoever asks first runs it, in its own
//! directory and environment; the others get what it wrote.

use std::{
    ffi::OsString,
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use paceline::{
    Builder, Error, FailureKind, FetchError, FetchFailure, Freshness, NetworkMode, QueryKey, Resource, Retry,
    Staleness,
};
use paceline_proto::limits::VALUE_MAX;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use crate::failure::Failure;

/// Bytes of stderr that are kept for those who wait; what comes before is left out.
const SAID_MAX: usize = 64 << 10;
/// A command has as long as it takes; whoever waits can be interrupted, and who dies is noticed by the end of its process.
const DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// What is cached for less is kept so long all the same: somebody may ask for an older one.
const KEPT: Duration = Duration::from_secs(300);

/// A command whose output is wanted.
#[derive(Debug, Clone)]
pub struct Cached {
    key: QueryKey,
    resource: String,
    command: Vec<OsString>,
    max_age: Duration,
}

impl Cached {
    /// The output of `command`, at most `max_age` old, under `key`.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the key is too long, or has a text that would be a name to the rules.
    pub fn new(key: &QueryKey, command: Vec<OsString>, max_age: Duration) -> Result<Self, Failure> {
        let mut hash = Sha256::new();
        for argument in &command {
            hash.update((argument.len() as u64).to_le_bytes());
            hash.update(argument.as_bytes());
        }
        let digest = hex(&hash.finalize()[..16]);
        let mut segments = key.segments();
        let is_name = |text: &str| text.contains(['{', '}']) || text == "..";
        if let Some(odd) = segments.iter().filter_map(Value::as_str).find(|text| is_name(text)) {
            let why =
                format!("{odd:?} cannot be in the key of a command: braces and `..` name keys in rules");
            return Err(Failure::Usage(why));
        }
        segments.push(json!({ "command": digest }));
        let key = QueryKey::new(&segments).map_err(|error| Failure::Usage(error.to_string()))?;
        // One resource for each key: the rules of another must not count for it.
        let name = hex(&Sha256::digest(&key.to_key().0)[..16]);
        Ok(Self { key, resource: format!("command.{name}"), command, max_age })
    }

    /// The key, the command's digest included.
    pub fn key(&self) -> &QueryKey {
        &self.key
    }

    /// How old the output may be.
    pub fn freshness(&self) -> Freshness {
        Freshness::by_rules().max_age(self.max_age)
    }

    /// A session that can run the command.
    pub fn prepare(&self, builder: Builder) -> Builder {
        let command: Arc<[OsString]> = self.command.clone().into();
        let once =
            Retry { times: 0, base: Duration::from_secs(1), cap: Duration::from_secs(1), jitter: false };
        let resource = Resource::new(&self.resource)
            .key(&self.key.segments())
            .stale(Staleness::Never)
            .gc_time(self.max_age.max(KEPT))
            .network(NetworkMode::Always)
            .retry(once)
            .deadline(DEADLINE)
            .cancellable()
            .fetch(move |_| run(command.clone()));
        builder.resource(resource)
    }
}

/// What a command wrote, as it is kept: a text, or an object with its bytes in Base64.
fn keep(output: Vec<u8>) -> Value {
    match String::from_utf8(output) {
        Ok(text) => text.into(),
        Err(error) => json!({ "base64": STANDARD.encode(error.as_bytes()) }),
    }
}

/// The bytes that a command wrote.
///
/// # Errors
/// [`Failure::Failed`] when the value is none of a command: somebody set it.
pub fn bytes(value: &Value) -> Result<Vec<u8>, Failure> {
    let odd =
        || Failure::failed("the cached value is not what a command wrote; `paceline invalidate` drops it");
    match value {
        Value::String(text) => Ok(text.clone().into_bytes()),
        Value::Object(members) => {
            let text = members.get("base64").and_then(Value::as_str).ok_or_else(odd)?;
            STANDARD.decode(text).map_err(|_| odd())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => Err(odd()),
    }
}

/// What the failure of a fetch means: that of the command is its own.
pub fn failure(error: Error) -> Failure {
    match error {
        Error::Fetch(FetchFailure { kind: FailureKind::Refused(status), detail, why, .. }) => {
            Failure::Command { status: u8::try_from(status).unwrap_or(1), said: detail.to_vec(), why }
        }
        other => other.into(),
    }
}

async fn run(command: Arc<[OsString]>) -> Result<Value, FetchError> {
    let name = command.first().map(OsString::as_os_str).unwrap_or_default();
    let failed = |status: i32, why: String| {
        let why = format!("{}: {why}", name.display());
        let said = format!("paceline: {why}\n");
        FetchError::refused(status, why).detail(said)
    };
    let mut child = Command::new(name)
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        // As a shell has it.
        .map_err(|error| failed(not_run(&error), error.to_string()))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (written, said) = tokio::join!(read_bounded(out), read_end(err));
    let written = written.map_err(|error| failed(1, error))?;
    let status = child.wait().await.map_err(|error| failed(1, error.to_string()))?;
    if status.success() {
        // To the terminal of whoever ran it, as without a cache; nobody is left to be told if this fails.
        let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), &said);
        return Ok(keep(written));
    }
    Err(failed(code(status), status.to_string()).detail(said))
}

/// The exit code of a shell for a command that cannot be started.
fn not_run(error: &std::io::Error) -> i32 {
    if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1)
}

/// All that comes, up to what a value may have.
async fn read_bounded(from: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, String> {
    let Some(from) = from else { return Ok(Vec::new()) };
    let mut read = Vec::new();
    let most = VALUE_MAX as u64;
    from.take(most + 1).read_to_end(&mut read).await.map_err(|error| error.to_string())?;
    if read.len() as u64 > most {
        return Err(format!("it wrote more than the {most} bytes that a value may have"));
    }
    Ok(read)
}

/// The end of all that comes.
async fn read_end(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut from) = from else { return Vec::new() };
    let (mut kept, mut piece) = (Vec::new(), vec![0; 8 << 10]);
    while let Ok(len @ 1..) = from.read(&mut piece).await {
        kept.extend_from_slice(&piece[..len]);
        if kept.len() > 2 * SAID_MAX {
            kept.drain(..kept.len() - SAID_MAX);
        }
    }
    kept.split_off(kept.len().saturating_sub(SAID_MAX))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

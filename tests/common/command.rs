//! Commands that tests run, and what they leave.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Bound of everything that is waited for. An emulated machine is twenty times slower than a real one.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Path of the binary under test.
pub const LB: &str = env!("CARGO_BIN_EXE_lb");

/// Asks again and again until the answer is yes, or the time is up.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What a command that has ended left.
#[derive(Clone, Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Runs a command to its end, which is bounded.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        let started = start(command);
        let id = started.id();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(started.wait_with_output()));
        let Ok(output) = receiver.recv_timeout(2 * PATIENCE) else {
            // The thread that waits for it has not reaped it yet, so the number is still its own.
            let _ = kill(Pid::from_raw(id as i32), Signal::SIGKILL);
            panic!("{command:?} does not end");
        };
        let Output { status, stdout, stderr } = output.expect("an output can be read");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("lb prints UTF-8");
        Self { status, stdout: text(stdout), stderr: text(stderr) }
    }

    /// What it printed; it has to have succeeded.
    #[track_caller]
    pub fn done(self) -> String {
        assert!(self.status.success(), "{self:?}");
        self.stdout
    }

    /// The documents that it printed, one a line; it has to have succeeded.
    #[track_caller]
    pub fn documents(self) -> Vec<Value> {
        let stdout = self.done();
        stdout.lines().map(|line| serde_json::from_str(line).expect("a line is a document")).collect()
    }

    /// The one document that it printed; it has to have succeeded.
    #[track_caller]
    pub fn json(self) -> Value {
        let mut documents = self.documents();
        assert_eq!(documents.len(), 1, "{documents:?}");
        documents.remove(0)
    }

    /// Its error; it has to have failed with `status` and one line that has each of `words`.
    #[track_caller]
    pub fn failed(self, status: i32, words: &[&str]) -> String {
        assert_eq!(self.status.code(), Some(status), "{self:?}");
        assert!(self.stderr.starts_with("lb: "), "{self:?}");
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "an error is one line: {self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {:?}", self.stderr);
        }
        self.stderr
    }

    /// Its error; it has to have failed by the option parser's own judgement, with status 2 and each of `words`.
    #[track_caller]
    pub fn misused(self, words: &[&str]) {
        assert_eq!(self.status.code(), Some(2), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {:?}", self.stderr);
        }
    }
}

fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// A command that runs beside the test, and is killed with it.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Option<thread::JoinHandle<String>>,
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = start(command);
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let errors = child.stderr.take().expect("it is piped");
        let errors = thread::spawn(move || std::io::read_to_string(errors).unwrap_or_default());
        Self { child, lines, errors: Some(errors) }
    }

    /// The next line that it prints.
    #[track_caller]
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("it prints a line in time")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the process is there");
    }

    /// Kills it, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits for its end. Standard output has the lines that nobody has read.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        assert!(eventually(2 * PATIENCE, || !self.is_running()), "the command does not end");
        let status = self.child.wait().expect("a child can be waited for");
        let stdout = self.lines.iter().map(|line| line + "\n").collect();
        let stderr = self.errors.take().expect("it is joined once").join().expect("reading does not panic");
        Ended { status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a command and kills it after a while.
pub fn cut_short(command: &mut Command, after: Duration) {
    let mut running = Running::start(command);
    thread::sleep(after);
    running.kill();
}

/// Moments in the life of an attach that takes so long in all, and a little beyond. Most are close to its end, for that
/// is when things are made that outlive it; before, the kernel verifies the programs. A slow machine gets fewer.
pub fn moments(whole: Duration) -> impl Iterator<Item = Duration> {
    let percents = (0..6).map(|n| 13 * n).chain((0..14).map(|n| 78 + 2 * n));
    let stride = usize::try_from(whole.as_secs()).map_or(5, |seconds| seconds.clamp(1, 5));
    percents.step_by(stride).map(move |percent| whole * percent / 100)
}

/// The keys of an object.
fn keys(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap_or_else(|| panic!("{object} is no object")).keys().map(String::as_str).collect()
}

/// That these are the keys of an object.
#[track_caller]
pub fn assert_keys(object: &Value, documented: &[&str]) {
    assert_eq!(keys(object), documented.iter().copied().collect(), "{object}");
}

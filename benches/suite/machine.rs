//! On what machine and when it was measured: a figure without that says nothing.

use crate::common::pairs::cores;
use keyleash::clock::unix_now;
use serde_json::{Value, json};
use std::{
    fs,
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

/// From this load for each core on somebody else was using the machine.
const BUSY_LOAD: f64 = 0.4;

/// See the module's page.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    model: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
    rustc: String,
    date: String,
    /// Of the minute before the run.
    load: f64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let memory_kib: u64 = memory_kib.trim_end_matches(" kB").parse().unwrap_or(0);
        let rustc = Command::new("rustc").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
        let now = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_now())).to_string();
        Self {
            model: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown processor".into()),
            cores: cores().len(),
            memory_gib: memory_kib.div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            rustc: String::from_utf8_lossy(&rustc).trim().to_owned(),
            date: now.split('T').next().unwrap_or_default().to_owned(),
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        }
    }

    /// What a reader must know before the first figure, or nothing.
    pub(crate) fn warning(&self) -> Option<String> {
        (self.load > BUSY_LOAD * self.cores as f64).then(|| {
            format!(
                "the machine was busy when this began (load {:.1} on {} cores): ratios are rougher than they could be",
                self.load, self.cores
            )
        })
    }

    pub(crate) fn line(&self) -> String {
        let Self { model, cores, memory_gib, kernel, rustc, date, .. } = self;
        let version = env!("CARGO_PKG_VERSION");
        format!("{model}, {cores} cores, {memory_gib} GiB, Linux {kernel}; keyleash {version}, {rustc}; {date}")
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "machine": self.line(), "load": self.load })
    }
}

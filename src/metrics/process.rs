//! What the kernel says about this process, under the names that Prometheus' client libraries share: read from /proc on
//! every scrape. (`prometheus` has it as a feature, by way of `procfs` and a second `rustix`: a tenth of our
//! dependencies' build time for seven numbers.)

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// The seven `process_…` series.
#[derive(Clone)]
pub(super) struct ProcessCollector {
    cpu: IntCounter,
    open_fds: IntGauge,
    max_fds: IntGauge,
    virtual_memory: IntGauge,
    resident_memory: IntGauge,
    start_time: IntGauge,
    threads: IntGauge,
}

impl ProcessCollector {
    /// # Errors
    /// When a name is not valid: never, they are constants.
    pub(super) fn new() -> prometheus::Result<ProcessCollector> {
        Ok(ProcessCollector {
            cpu: IntCounter::new("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")?,
            open_fds: IntGauge::new("process_open_fds", "Number of open file descriptors.")?,
            max_fds: IntGauge::new("process_max_fds", "Maximum number of open file descriptors.")?,
            virtual_memory: IntGauge::new("process_virtual_memory_bytes", "Virtual memory size in bytes.")?,
            resident_memory: IntGauge::new("process_resident_memory_bytes", "Resident memory size in bytes.")?,
            start_time: IntGauge::new("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")?,
            threads: IntGauge::new("process_threads", "Number of OS threads in the process.")?,
        })
    }

    fn series(&self) -> [&dyn Collector; 7] {
        [&self.cpu, &self.open_fds, &self.max_fds, &self.virtual_memory, &self.resident_memory, &self.start_time, &self.threads]
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.series().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // No numbers are better than wrong ones, where /proc cannot be read.
        let Some(stat) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text)) else { return Vec::new() };
        // Two scrapes at once: the later one may have been read first, and a counter only grows.
        let cpu_seconds = stat.cpu_ticks / clock_ticks_per_second();
        self.cpu.inc_by(cpu_seconds.saturating_sub(self.cpu.get()));
        self.threads.set(signed(stat.threads));
        self.virtual_memory.set(signed(stat.virtual_bytes));
        self.resident_memory.set(signed(stat.resident_pages.saturating_mul(page_size() as u64)));
        if let Some(boot) = std::fs::read_to_string("/proc/stat").ok().and_then(|text| boot_seconds(&text)) {
            self.start_time.set(signed(boot + stat.start_ticks / clock_ticks_per_second()));
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // Less the one that reads the list.
            self.open_fds.set(signed(open.count() as u64) - 1);
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            self.max_fds.set(signed(most));
        }
        self.series().into_iter().flat_map(Collector::collect).collect()
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Of proc_pid_stat(5), what is reported.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The program's name stands in parentheses, and may itself hold spaces and parentheses.
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // The manual page counts from 1; what follows the name is its third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the machine started, in seconds since 1970: the line `btime` of /proc/stat.
fn boot_seconds(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("btime ")).and_then(|seconds| seconds.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_name_may_hold_spaces_and_parentheses() {
        let text = "7 (a) (b c) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 4 0 1234 104857600 2560 184467 1 1 0\n";
        let expected = Stat { cpu_ticks: 300, threads: 4, start_ticks: 1234, virtual_bytes: 104_857_600, resident_pages: 2560 };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1 7"), None);
    }

    #[test]
    fn this_process_is_described() {
        let families = ProcessCollector::new().unwrap().collect();
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name() == name).unwrap_or_else(|| panic!("no {name}"));
            let metric = &family.get_metric()[0];
            if name.ends_with("_total") { metric.get_counter().get_value() } else { metric.get_gauge().get_value() }
        };
        assert_eq!(families.len(), 7);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_threads") >= 1.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        // Boot time and ticks are whole seconds and hundredths; a machine's clock may have been set since it started.
        assert!(value("process_start_time_seconds") > 1e9 && value("process_start_time_seconds") <= now + 2.0);
    }
}

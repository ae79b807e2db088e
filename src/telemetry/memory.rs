//! What the process and its control group use of the machine's memory.
//!
//! Parsing is separate from reading: everything here sees files through a function, the tests through a table.

/// Memory in use and the most that may be used, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// What this process holds in RAM (resident set size).
    pub resident: u64,
    /// The lowest memory limit of the process's control group and its ancestors, at most the machine's memory.
    /// `None` where the platform has no such figure (anything but Linux).
    pub limit: Option<u64>,
    /// What the control group that sets the limit uses and the kernel cannot simply drop:
    /// `max(usage - inactive file pages, anonymous)`. Without a control group, the same as `resident`.
    pub working_set: u64,
}

impl Memory {
    /// Reads the current figures; what cannot be read is left at zero, or `None`.
    #[cfg(target_os = "linux")]
    pub(super) fn now() -> Self {
        Self::read(&|path| std::fs::read_to_string(path).ok())
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn now() -> Self {
        let resident = metrics_process::collector::collect().resident_memory_bytes.unwrap_or_default();
        Self { resident, limit: None, working_set: resident }
    }

    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    fn read(file: Files<'_>) -> Self {
        let resident = kibibytes(file, "/proc/self/status", "VmRSS:").unwrap_or_default();
        let machine = kibibytes(file, "/proc/meminfo", "MemTotal:");
        let group = Group::of_process(file);
        let level = group.as_ref().and_then(|group| group.tightest(file, machine.unwrap_or(u64::MAX)));
        Self {
            resident,
            limit: level.map(|level| level.limit).filter(|limit| *limit < u64::MAX).or(machine),
            working_set: level.map_or(resident, |level| level.working_set),
        }
    }
}

/// A file's content by its absolute path; `None` if it cannot be read.
type Files<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where the process stands in the hierarchy that accounts for memory.
struct Group {
    version: Version,
    /// `""` for the hierarchy's root, else `/a/b`.
    path: String,
}

#[derive(Clone, Copy)]
enum Version {
    V1,
    V2,
}

#[derive(Clone, Copy)]
struct Level {
    limit: u64,
    working_set: u64,
}

// === impl Group ===

impl Group {
    /// From `/proc/self/cgroup`. A v1 memory controller wins over v2: on hybrid hosts v2 does not account for memory.
    fn of_process(file: Files<'_>) -> Option<Self> {
        let groups = file("/proc/self/cgroup")?;
        let line = |controller: &str| {
            groups.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                controllers.split(',').any(|name| name == controller).then_some(path)
            })
        };
        let (version, path) = match (line("memory"), line("")) {
            (Some(path), _) => (Version::V1, path),
            (None, Some(path)) => (Version::V2, path),
            (None, None) => return None,
        };
        // `/..` is how a process outside its control group namespace's root is shown.
        let path = if path.starts_with("/..") { "" } else { path.trim_end_matches('/') };
        Some(Self { version, path: path.to_owned() })
    }

    /// The level with the lowest limit, the innermost of equals, with limits no higher than the machine's memory.
    /// A container sees its own group as the mount's root under a path that it cannot see: absent levels are skipped.
    fn tightest(&self, file: Files<'_>, machine: u64) -> Option<Level> {
        let mut path = self.path.as_str();
        let mut tightest: Option<Level> = None;
        loop {
            if let Some(mut level) = self.level(file, path) {
                level.limit = level.limit.min(machine);
                tightest = Some(tightest.filter(|lower| lower.limit <= level.limit).unwrap_or(level));
            }
            match path.rsplit_once('/') {
                Some((parent, _)) => path = parent,
                None => return tightest,
            }
        }
    }

    fn level(&self, file: Files<'_>, path: &str) -> Option<Level> {
        let (mount, names) = match self.version {
            Version::V1 => ("/sys/fs/cgroup/memory", V1),
            Version::V2 => ("/sys/fs/cgroup", V2),
        };
        let read = |name: &str| file(&format!("{mount}{path}/{name}"));
        let usage = number(&read(names.usage)?)?;
        let stat = read(names.stat).unwrap_or_default();
        let counted = |name: &str| stat.lines().find_map(|line| number(line.strip_prefix(name)?)).unwrap_or_default();
        Some(Level {
            // v2 says "max", v1 the largest multiple of the page size below 2^63.
            limit: read(names.limit)
                .and_then(|limit| number(&limit))
                .filter(|limit| *limit < 1 << 62)
                .unwrap_or(u64::MAX),
            working_set: usage.saturating_sub(counted(names.inactive_file)).max(counted(names.anonymous)),
        })
    }
}

struct Names {
    usage: &'static str,
    limit: &'static str,
    stat: &'static str,
    inactive_file: &'static str,
    anonymous: &'static str,
}

const V1: Names = Names {
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    stat: "memory.stat",
    inactive_file: "total_inactive_file ",
    anonymous: "total_rss ",
};

const V2: Names = Names {
    usage: "memory.current",
    limit: "memory.max",
    stat: "memory.stat",
    inactive_file: "inactive_file ",
    anonymous: "anon ",
};

fn kibibytes(file: Files<'_>, path: &str, name: &str) -> Option<u64> {
    let content = file(path)?;
    let value = content.lines().find_map(|line| line.strip_prefix(name))?;
    number(value.trim_end_matches("kB"))?.checked_mul(1024)
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const STATUS: (&str, &str) =
        ("/proc/self/status", "Name:\tapp\nVmPeak:\t   90000 kB\nVmRSS:\t   10240 kB\nThreads:\t3\n");
    const MACHINE: (&str, &str) = ("/proc/meminfo", "MemTotal:        8388608 kB\nMemFree:          100000 kB\n");

    fn read(files: &[(&str, &str)]) -> Memory {
        let files: std::collections::HashMap<&str, &str> = files.iter().copied().collect();
        Memory::read(&|path| files.get(path).map(|content| (*content).to_owned()))
    }

    #[test]
    fn without_control_groups_the_machine_is_the_limit() {
        let memory = read(&[STATUS, MACHINE]);
        assert_eq!(memory, Memory { resident: 10 * MIB, limit: Some(8192 * MIB), working_set: 10 * MIB });
        assert_eq!(read(&[]), Memory::default());
    }

    #[test]
    fn v2_in_a_container_is_its_own_root() {
        let memory = read(&[
            STATUS,
            MACHINE,
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/memory.max", "536870912\n"),
            ("/sys/fs/cgroup/memory.current", "419430400\n"),
            (
                "/sys/fs/cgroup/memory.stat",
                "anon 20971520\nfile 398458880\ninactive_file 377487360\nactive_file 20971520\n",
            ),
        ]);
        assert_eq!(memory.limit, Some(512 * MIB));
        assert_eq!(memory.working_set, 40 * MIB, "a full page cache is not a working set");
    }

    #[test]
    fn v2_takes_the_tightest_level() {
        let tree = |inner: &'static str, outer: &'static str| {
            read(&[
                STATUS,
                MACHINE,
                ("/proc/self/cgroup", "0::/kubepods/pod1/app\n"),
                ("/sys/fs/cgroup/kubepods/pod1/app/memory.max", inner),
                ("/sys/fs/cgroup/kubepods/pod1/app/memory.current", "104857600\n"),
                ("/sys/fs/cgroup/kubepods/pod1/app/memory.stat", "anon 104857600\ninactive_file 0\n"),
                ("/sys/fs/cgroup/kubepods/pod1/memory.max", outer),
                ("/sys/fs/cgroup/kubepods/pod1/memory.current", "209715200\n"),
                ("/sys/fs/cgroup/kubepods/pod1/memory.stat", "anon 104857600\ninactive_file 52428800\n"),
                ("/sys/fs/cgroup/kubepods/memory.max", "max\n"),
                ("/sys/fs/cgroup/kubepods/memory.current", "4294967296\n"),
            ])
        };
        for (inner, outer, limit, working_set) in [
            ("268435456\n", "max\n", 256, 100),
            ("max\n", "314572800\n", 300, 150),
            ("268435456\n", "268435456\n", 256, 100),
            ("max\n", "max\n", 8192, 100),
            ("99999999999999\n", "max\n", 8192, 100),
        ] {
            let memory = tree(inner, outer);
            assert_eq!(memory.limit, Some(limit * MIB), "{inner:?} in {outer:?}");
            assert_eq!(memory.working_set, working_set * MIB, "{inner:?} in {outer:?}");
        }
    }

    #[test]
    fn v1_and_hybrid_hosts_use_the_memory_controller() {
        let groups = "9:name=systemd:/\n5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/system.slice\n";
        // Inside the container its group is the mount's root, and the path of `/proc/self/cgroup` does not exist.
        let memory = read(&[
            STATUS,
            MACHINE,
            ("/proc/self/cgroup", groups),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "265302016\n"),
            (
                "/sys/fs/cgroup/memory/memory.stat",
                "cache 1\nrss 2\ninactive_file 3\ntotal_rss 17125376\ntotal_inactive_file 170815488\n",
            ),
        ]);
        assert_eq!(memory.limit, Some(1024 * MIB));
        assert_eq!(memory.working_set, 265_302_016 - 170_815_488);

        let unlimited = read(&[
            STATUS,
            MACHINE,
            ("/proc/self/cgroup", groups),
            ("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "1048576\n"),
            ("/sys/fs/cgroup/memory/docker/abc/memory.stat", "total_rss 2097152\ntotal_inactive_file 9999999\n"),
        ]);
        assert_eq!(unlimited.limit, Some(8192 * MIB));
        assert_eq!(unlimited.working_set, 2 * MIB, "at least what is anonymous");
    }

    #[test]
    fn paths_outside_the_namespace_and_nonsense_are_harmless() {
        for groups in ["0::/../../other\n", "0::/gone/away\n", "0::/\n"] {
            let memory = read(&[
                STATUS,
                MACHINE,
                ("/proc/self/cgroup", groups),
                ("/sys/fs/cgroup/memory.current", "20971520\n"),
                ("/sys/fs/cgroup/memory.max", "41943040\n"),
            ]);
            assert_eq!((memory.limit, memory.working_set), (Some(40 * MIB), 20 * MIB), "{groups:?}");
        }
        for nonsense in ["", "0", "::::", "memory", "0::", "\u{0}\n:::\n"] {
            let memory =
                read(&[STATUS, MACHINE, ("/proc/self/cgroup", nonsense), ("/sys/fs/cgroup/memory.current", "-1\n")]);
            assert_eq!((memory.limit, memory.working_set), (Some(8192 * MIB), 10 * MIB), "{nonsense:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_figures() {
        let memory = Memory::now();
        assert!(memory.resident > MIB, "{memory:?}");
        assert!(memory.working_set > 0);
        assert!(memory.limit.unwrap() > memory.resident);
    }
}

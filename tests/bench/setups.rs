//! What is attached while something is measured.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use ztseg::datapath::measure::{self, RunTime};
use ztseg::datapath::sys::{AttachType, link_create};
use ztseg::datapath::{CGROUP_PROGRAMS, Datapath, TC_PROGRAMS, has_tcx};

use crate::policy::Shape;
use crate::programs;
use crate::stage::Stage;

/// Which hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Cgroup,
    Tc,
}

impl Path {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Tc => "TC",
        }
    }

    fn hooks(self) -> Vec<(&'static str, AttachType)> {
        match self {
            Self::Cgroup => CGROUP_PROGRAMS.to_vec(),
            // The server behind the interface is the workload: what comes in is what it sends.
            Self::Tc => vec![
                (TC_PROGRAMS[0], AttachType::TcxIngress),
                (TC_PROGRAMS[1], AttachType::TcxEgress),
            ],
        }
    }
}

/// What stands at the hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Nothing.
    Nothing,
    /// Programs that let everything pass.
    Empty(Path),
    /// Programs that drop every packet, and do nothing else.
    Drop(Path),
    /// Ztseg, with the datapath of this number.
    Ztseg(Path, usize),
}

impl What {
    pub(crate) fn path(self) -> Option<Path> {
        match self {
            Self::Nothing => None,
            Self::Empty(path) | Self::Drop(path) | Self::Ztseg(path, _) => Some(path),
        }
    }
}

/// One configuration.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) name: String,
    pub(crate) what: What,
    programs: Vec<(&'static str, AttachType, OwnedFd)>,
}

/// What is attached; detached when it is dropped, also with the process.
#[must_use]
#[derive(Debug)]
pub(crate) struct Attached {
    _links: Vec<OwnedFd>,
}

impl Setup {
    fn new(name: String, what: What, datapaths: &[Datapath]) -> Result<Self> {
        let program = |name: &str, hook: AttachType| -> Result<OwnedFd> {
            Ok(match what {
                What::Ztseg(_, number) => {
                    let datapath = datapaths.get(number).context("no such datapath")?;
                    datapath.program_fd(name)?
                }
                _ => programs::returning(value(what, hook), hook)
                    .with_context(|| format!("loading a baseline for {name}"))?,
            })
        };
        let hooks = what.path().map(Path::hooks).unwrap_or_default();
        let programs = hooks
            .into_iter()
            .map(|(name, hook)| Ok((name, hook, program(name, hook)?)))
            .collect::<Result<_>>()?;
        Ok(Self { name, what, programs })
    }

    pub(crate) fn attach(&self, stage: &Stage) -> Result<Attached> {
        let root = File::open(stage.world.cgroup_root()).context("cannot open the cgroup")?;
        let root_fd = u32::try_from(root.as_raw_fd())?;
        let links = self.programs.iter().map(|(name, hook, program)| {
            let target = match self.what.path() {
                Some(Path::Tc) => stage.subjects.ifindex,
                _ => root_fd,
            };
            link_create(program.as_fd(), target, *hook)
                .with_context(|| format!("attaching {name} for {}", self.name))
        });
        Ok(Attached { _links: links.collect::<Result<_>>()? })
    }

    /// What the kernel counted of each program so far.
    pub(crate) fn run_times(&self) -> Result<Vec<(&'static str, RunTime)>> {
        let read =
            |fd: BorrowedFd<'_>| measure::run_time(fd).context("reading run-time statistics");
        self.programs.iter().map(|(name, _, fd)| Ok((*name, read(fd.as_fd())?))).collect()
    }

    pub(crate) fn datapath(&self) -> Option<usize> {
        match self.what {
            What::Ztseg(_, number) => Some(number),
            _ => None,
        }
    }
}

/// What a baseline returns at a hook.
fn value(what: What, hook: AttachType) -> i32 {
    let tc = matches!(hook, AttachType::TcxIngress | AttachType::TcxEgress);
    let packets = tc || matches!(hook, AttachType::CgroupIngress | AttachType::CgroupEgress);
    match (packets && matches!(what, What::Drop(_)), tc) {
        // TC_ACT_SHOT and TC_ACT_UNSPEC
        (true, true) => 2,
        (false, true) => -1,
        (true, false) => 0,
        (false, false) => 1,
    }
}

/// The configurations side by side, each with the paths that this kernel has.
#[derive(Debug)]
pub(crate) struct Setups {
    pub(crate) datapaths: Vec<Datapath>,
    pub(crate) list: Vec<Setup>,
}

impl Setups {
    /// Nothing, empty programs (and with `drops` programs that drop), and ztseg with each shape.
    pub(crate) fn new(
        stage: &Stage,
        shapes: &[(&str, Shape)],
        drops: bool,
        prefix: &str,
    ) -> Result<Self> {
        let datapaths = shapes
            .iter()
            .enumerate()
            .map(|(i, (_, shape))| stage.datapath(&format!("{prefix}{i}"), *shape))
            .collect::<Result<Vec<_>>>()?;
        let mut list = vec![Setup::new("nothing".into(), What::Nothing, &datapaths)?];
        let paths: &[Path] = if has_tcx() { &[Path::Cgroup, Path::Tc] } else { &[Path::Cgroup] };
        for path in paths.iter().copied() {
            let mut add = |name: String, what| -> Result<()> {
                list.push(Setup::new(name, what, &datapaths)?);
                Ok(())
            };
            let at = path.name();
            add(format!("{at}, empty program"), What::Empty(path))?;
            if drops {
                add(format!("{at}, silent drop"), What::Drop(path))?;
            }
            for (i, (name, _)) in shapes.iter().enumerate() {
                add(format!("{at}, ztseg, {name}"), What::Ztseg(path, i))?;
            }
        }
        Ok(Self { datapaths, list })
    }

    /// The number of the configuration with this at its hooks.
    pub(crate) fn position(&self, what: What) -> Option<usize> {
        self.list.iter().position(|setup| setup.what == what)
    }
}

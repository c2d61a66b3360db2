//! What one seed decides in advance: the pool's settings, how much work comes,
//! and which faults happen how often.

use hyperv_runner_pool::pool::Millis;
use hyperv_runner_pool::pool::back_off::Random;

pub const SECOND: Millis = 1_000;
pub const MINUTE: Millis = 60 * SECOND;
pub const HOUR: Millis = 60 * MINUTE;
pub const DAY: Millis = 24 * HOUR;

/// All randomness of a run comes from one of these.
#[derive(Clone, Debug)]
pub struct Rng(pub Random);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0.bits()
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n.max(1))) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: Millis, high: Millis) -> Millis {
        low + self.below((high - low + 1).max(1) as u64) as Millis
    }

    /// True so many times in a million.
    pub fn ppm(&mut self, rate: u32) -> bool {
        rate > 0 && self.below(1_000_000) < u64::from(rate)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A waiting time with this mean, exponentially distributed.
    pub fn wait(&mut self, mean: Millis) -> Millis {
        let unit = (self.below(1 << 53) + 1) as f64 / (1u64 << 53) as f64;
        (-unit.ln() * mean as f64) as Millis + 1
    }
}

macro_rules! faults {
    ($($name:ident = $rate:expr, $text:expr;)*) => {
        /// A kind of fault. Those with a rate of 0 here come on their own clock.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($name),* }

        /// What each is called, and how often it comes (per million occasions) at normal strength.
        pub const FAULTS: &[(&str, u32)] = &[$(($text, $rate)),*];
    };
}

faults! {
    CreateFails = 30_000, "create fails and undoes everything";
    CreateHalf = 20_000, "create fails and leaves a disk or VM";
    CreateHangs = 15_000, "create hangs until its deadline";
    CreateGoesOn = 500_000, "an abandoned create goes on later";
    DestroyFails = 40_000, "destroy fails half-way";
    DestroyHangs = 10_000, "destroy hangs until its deadline";
    ExamineHangs = 50_000, "looking at a VM that did not boot hangs until its deadline";
    ListFails = 20_000, "listing VMs fails";
    VmUnlisted = 5_000, "a list of VMs leaves one out";
    DiskFull = 0, "the disk is full for a while";
    VmVanishes = 4_000, "a VM disappears";
    HostReboots = 0, "the host reboots";
    GitHubFails = 20_000, "a call to GitHub fails";
    AnswerLost = 10_000, "GitHub acts and its answer is lost";
    GitHubSlow = 20_000, "a call to GitHub takes up to a minute";
    GitHubDown = 0, "GitHub is down for a while";
    RateLimited = 3_000, "GitHub limits the rate";
    RunnerUnlisted = 10_000, "a list of runners leaves one out";
    StatusLags = 50_000, "GitHub's list shows an earlier status";
    StuckBusy = 300_000, "a dead VM's runner stays busy for hours";
    NeverBoots = 20_000, "a guest never boots";
    GuestSilent = 10_000, "a guest never calls";
    BootsLate = 30_000, "a guest boots very late";
    RunnerHangs = 10_000, "a guest has its configuration and its runner never starts";
    RunnerDies = 20_000, "a runner ends without a job";
    PowerOff = 30_000, "a VM powers off at any moment";
    StaysOn = 30_000, "a guest does not power off after its job";
    GuestReboots = 20_000, "a guest starts again, in its job or after it";
    CallLost = 50_000, "a guest's call, or its answer, is lost";
    CallTwice = 30_000, "a guest calls twice";
    CallLate = 30_000, "a guest's call arrives late, perhaps after its VM's end";
    CallForged = 20_000, "a call with a wrong proof";
    HookLost = 100_000, "a webhook is lost";
    HookTwice = 50_000, "a webhook comes twice";
    HookDelayed = 100_000, "a webhook comes minutes late, out of order";
    HookHoursLate = 20_000, "a webhook comes hours late";
    HookForeign = 50_000, "a webhook of another pool's runner";
    JobTooLong = 10_000, "a job runs past the limit";
    Killed = 0, "the process is killed";
    KilledInEffect = 3_000, "the process is killed in the midst of an effect";
    EffectCutOff = 500_000, "what a killed process was doing is cut off";
    Stopped = 0, "the pool is stopped and started again";
    StopDestroys = 0, "the pool is stopped with SHUTDOWN=destroy";
    SettingsChange = 0, "the settings change across a restart";
    ClockJumps = 0, "the clock jumps ahead";
    ScopeChange = 0, "the pool moves to another organization or repository";
    Drained = 0, "an operator drains the pool, and resumes it";
    Recycled = 0, "an operator recycles VMs";
    TokenRefused = 0, "GitHub refuses the token for a while";
    TemplateReplaced = 0, "the template is replaced";
    TemplateBad = 0, "the new template does not boot";
    RunnerRemoved = 0, "somebody else removes a registration";
    DeleteOnBusy = 200_000, "GitHub removes a runner although it has a job";
    BusyWrong = 30_000, "GitHub calls a runner idle for the whole of its job";
    OfflineWrong = 20_000, "GitHub calls a runner offline in the midst of its job";
    GuestHangs = 10_000, "a guest hangs while its VM is on";
    GuestMute = 50_000, "a guest never says anything by key-values";
    WordLate = 200_000, "a guest's word is late";
    RetireIgnored = 50_000, "a guest does not retire when asked";
    JobCanceled = 50_000, "a job is canceled while it waits";
    JobNotTaken = 20_000, "a job is canceled before its runner takes it";
    Preempted = 30_000, "a thread is held up between two steps";
    QueueFails = 20_000, "a call to the scale set's queue fails";
    QueueTokenExpires = 10_000, "the access to the queue expires";
    RenewalRefused = 300_000, "the access to the queue is not renewed";
    SessionLost = 5_000, "the queue's session ends by itself";
    ScaleSetRemoved = 1_000, "GitHub removes the scale set";
    NoQueueAddress = 50_000, "a session has no address of its queue";
    MessageLost = 30_000, "a message of the queue is lost";
    MessageLate = 50_000, "a message of the queue comes late, with an old count";
    MessageEmpty = 30_000, "a message of the queue tells nothing but a count";
    CompletedEarly = 50_000, "the queue says of a job that it is completed while it runs";
    AssignmentCanceled = 50_000, "an assignment is canceled and made again";
}

pub const FAULT_KINDS: usize = FAULTS.len();

/// The pool's settings, which a restart may change.
#[derive(Clone, Debug)]
pub struct Config {
    pub prefix: String,
    pub size: u32,
    pub warm: u32,
    pub poll: Millis,
    pub boot_timeout: Millis,
    pub job_timeout: Millis,
    pub keep_failed: bool,
    pub jit: bool,
    pub surplus_after: Millis,
    pub max_idle: Millis,
    /// Whose runners.
    pub owner: &'static str,
    /// Whether of one repository, whose queued jobs can be listed.
    pub repository: bool,
    /// Whether the pool learns of jobs from a scale set's queue.
    pub scale_set: bool,
}

/// What a seed decides in advance.
#[derive(Clone, Debug)]
pub struct Plan {
    pub config: Config,
    /// How long faults happen and jobs come.
    pub length: Millis,
    /// The mean time between two jobs.
    pub job_every: Millis,
    /// The least and the most that a job takes.
    pub job_takes: (Millis, Millis),
    /// Per million occasions, by fault.
    pub rates: [u32; FAULT_KINDS],
    /// The mean time between two faults of those that come on their own clock. 0: none.
    pub disturbed_every: Millis,
    /// A pool on another host shares prefix, labels, webhooks and GitHub with this one.
    pub other_host: bool,
    /// No guest says anything by key-values.
    pub mute: bool,
    /// Rounds of the monitor that can change nothing may be skipped.
    pub skip_idle: bool,
}

impl Plan {
    /// What the seed makes of it.
    pub fn from_seed(rng: &mut Rng) -> Plan {
        let size = 1 + rng.below(5) as u32;
        let warm = if rng.one_in(2) { size } else { rng.below(u64::from(size) + 1) as u32 };
        let config = Config {
            prefix: "runner-".into(),
            size,
            warm,
            poll: [5, 15, 15, 30, 30, 30, 60, 60][rng.below(8) as usize] * SECOND,
            boot_timeout: [5, 10, 10, 20][rng.below(4) as usize] * MINUTE,
            job_timeout: [1, 2, 6][rng.below(3) as usize] * HOUR,
            jit: !rng.one_in(3),
            surplus_after: [2, 10, 30][rng.below(3) as usize] * MINUTE,
            max_idle: [2, 24, 24][rng.below(3) as usize] * HOUR,
            owner: "octo",
            repository: rng.one_in(2),
            keep_failed: rng.one_in(3),
            scale_set: false,
        };
        let scale_set = rng.one_in(2);
        let config = Config { scale_set, jit: config.jit || scale_set, ..config };
        let mut rates = [0; FAULT_KINDS];
        let mut disturbed_every = 0;
        // Some seeds have no faults, some have a few kinds, some have most.
        let enabled = [0, 100_000, 300_000, 600_000, 900_000][rng.below(5) as usize];
        if enabled > 0 {
            for (rate, (_, normal)) in rates.iter_mut().zip(FAULTS) {
                if rng.ppm(enabled) {
                    let strength = [30, 100, 100, 300][rng.below(4) as usize];
                    *rate = (normal * strength / 100).min(900_000);
                }
            }
            if rng.ppm(enabled.max(300_000)) {
                disturbed_every = [20 * MINUTE, HOUR, 3 * HOUR][rng.below(3) as usize];
            }
        }
        let longest = [4, 10, 30][rng.below(3) as usize] * MINUTE;
        let load = [1, 2, 3][rng.below(3) as usize];
        Plan {
            length: if rng.one_in(20) { rng.between(DAY, 3 * DAY) } else { rng.between(3 * HOUR, 10 * HOUR) },
            job_every: (longest / 2 + 2 * MINUTE) * 2 / (load * Millis::from(size)),
            job_takes: (5 * SECOND, longest),
            rates,
            disturbed_every,
            other_host: enabled > 0 && rng.one_in(6) && !scale_set,
            mute: rng.one_in(6),
            skip_idle: false,
            config,
        }
    }

    /// A year of a pool of four, with every fault at a tenth of its normal rate.
    pub fn year() -> Plan {
        let mut rates = [0; FAULT_KINDS];
        for (rate, (_, normal)) in rates.iter_mut().zip(FAULTS) {
            *rate = normal / 10;
        }
        // These stay what they are: they say how another fault goes on.
        for fault in [Fault::CreateGoesOn, Fault::EffectCutOff, Fault::StuckBusy] {
            rates[fault as usize] = FAULTS[fault as usize].1;
        }
        Plan {
            config: Config {
                prefix: "runner-".into(),
                size: 4,
                warm: 4,
                poll: 30 * SECOND,
                boot_timeout: 10 * MINUTE,
                job_timeout: 6 * HOUR,
                keep_failed: true,
                jit: true,
                surplus_after: 10 * MINUTE,
                max_idle: DAY,
                owner: "octo",
                repository: true,
                scale_set: false,
            },
            length: 365 * DAY,
            job_every: 30 * MINUTE,
            job_takes: (MINUTE, 40 * MINUTE),
            rates,
            disturbed_every: 7 * DAY,
            other_host: false,
            mute: false,
            skip_idle: true,
        }
    }
}

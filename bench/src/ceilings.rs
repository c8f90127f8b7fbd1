//! The ceilings of `volferry bench` beside programs that measure the same: `bench ceilings`.
//!
//! Each pair has the same work: fio reads the very file, and writes one like it, with the same blocks past
//! the page cache, as many of them at once, and the same flush. OpenSSL encrypts as many bytes at once as a TLS
//! record holds. iperf3 does not encrypt, so beside it stands what TLS costs without sealing and opening.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;
use volferry_benchmark::ceiling::cpu::Workbench;
use volferry_benchmark::ceiling::{Bench, CPU_TIME, Measured, NETWORK_TIME, network, storage};
use volferry_benchmark::place::Place;
use volferry_benchmark::profile::Profile;
use volferry_benchmark::settings::{Settings, Tuning};
use volferry_benchmark::shape;
use volferry_benchmark::stats::Summary;
use volferry_benchmark::stop::Stop;
use volferry_transport::TransportChoice;

use crate::error::{At as _, Error};
use crate::size::{GIB, Size};
use crate::tools::{self, Tools};
use crate::{output, port};

/// Measures ceilings of volferry bench, and beside each what other programs make of the same.
#[derive(Clone, Debug, Args)]
pub(crate) struct CeilingsArgs {
    /// Bytes that are read and written each time.
    #[arg(long, default_value = "1GiB")]
    size: Size,
    /// How often each is measured; medians are shown, and the median of how far each round's two are apart.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// A new directory, on the disk that is measured; it is removed again.
    #[arg(long, default_value = "bench/out/ceilings")]
    directory: PathBuf,
}

/// What both measure, in what unit, and which program stands beside.
const PAIRS: [(&str, &str, &str); 4] = [
    ("reading", "GiB/s", "fio"),
    ("writing and flushing", "GiB/s", "fio"),
    ("sealing AES-128-GCM", "CPU-s/GiB", "openssl"),
    ("TCP, one stream", "CPU-s/GiB", "iperf3"),
];

/// Measures, and prints a line for each pair.
pub(crate) fn run(args: &CeilingsArgs) -> Result<(), Error> {
    let stop = Stop::on_signal()?;
    let settings = settings(args);
    let place = Place::claim(&settings)?;
    let measured = measure(args, &settings, &place, &stop);
    place.close()?;
    let mut values = measured?;
    output::line("| ceiling | | here | spread | beside it | | spread | off |");
    output::line("|---|---|---|---|---|---|---|---|");
    for (what, unit, program) in PAIRS {
        let mut next = || values.remove(0);
        output::line(&line(what, unit, program, &next(), &next()));
    }
    Ok(())
}

fn settings(args: &CeilingsArgs) -> Settings {
    Settings {
        source: args.directory.clone(),
        target: args.directory.clone(),
        scratch: None,
        overwrite: false,
        profiles: vec![Profile::Random],
        size: Some(args.size.0),
        files: Some(0),
        seed: 1,
        repeats: args.repeats,
        budget: Duration::MAX,
        budget_bytes: u64::MAX,
        drop_caches: false,
        tuning: Tuning::of_agents(),
    }
}

/// Of each pair what was measured here, and beside it.
fn measure(
    args: &CeilingsArgs,
    settings: &Settings,
    place: &Place,
    stop: &Stop,
) -> Result<Vec<Vec<f64>>, Error> {
    let tools = Tools::new(None);
    let tuning = settings.tuning;
    let volume = shape::make_volume(place.scratch(), Profile::Random, args.size.0, 1, stop)?;
    let cpu = Arc::new(Workbench::new(tuning, Profile::Random, 1)?);
    let volumes = [volume];
    let bench = Bench {
        settings,
        place,
        volumes: &volumes,
        own_volume: None,
        tree: None,
        cpu: &cpu,
        stop,
    };
    let source = &volumes[0].path;
    let mut values = vec![Vec::new(); 2 * PAIRS.len()];
    for repeat in 1..=args.repeats {
        output::progress(&format!("round {repeat} of {}", args.repeats));
        let seal = cpu.records(CPU_TIME, false)?;
        let open = cpu.records(CPU_TIME, true)?;
        let tls = network::fill(&cpu, TransportChoice::Tls, 1, NETWORK_TIME, None)?;
        let plain = per_gib(&tls) - per_gib(&seal) - per_gib(&open);
        let round = [
            rate(&storage::read(&bench, source, u64::MAX)?),
            fio(&tools, source, "read", tuning.readers, args.size.0)?,
            rate(&storage::write(&bench, args.size.0)?),
            fio(
                &tools,
                &place.target("fio.img"),
                "write",
                tuning.writers,
                args.size.0,
            )?,
            per_gib(&seal),
            openssl(&tools)?,
            plain,
            iperf3(&tools)?,
        ];
        for (values, value) in values.iter_mut().zip(round) {
            values.push(value);
        }
    }
    Ok(values)
}

/// GiB a second.
fn rate(measured: &Measured) -> f64 {
    measured.rate() / GIB as f64
}

/// Processor seconds for a GiB.
fn per_gib(measured: &Measured) -> f64 {
    measured.cost.cpu_seconds / measured.bytes as f64 * GIB as f64
}

fn line(what: &str, unit: &str, program: &str, here: &[f64], beside: &[f64]) -> String {
    let summary = |values: &[f64]| Summary::of(values.iter().copied());
    // Of the same round, so that both met the same machine.
    let ratios = here.iter().zip(beside).map(|(here, beside)| here / beside);
    let (Some(here), Some(beside), Some(ratio)) =
        (summary(here), summary(beside), Summary::of(ratios))
    else {
        return format!("| {what} | {unit} | not measured |");
    };
    let shown = |one: Summary| format!("{:.2} | {:.0} %", one.median, one.spread_percent());
    let off = (ratio.median - 1.0) * 100.0;
    format!(
        "| {what} | {unit} | {} | {program} | {} | {off:+.0} % |",
        shown(here),
        shown(beside)
    )
}

/// GiB a second that fio reads of the file, or writes to a new one of a size that it has from the beginning.
fn fio(tools: &Tools, file: &Path, way: &str, depth: usize, bytes: u64) -> Result<f64, Error> {
    let mut fio = tools.command("fio");
    // As here: in memory of small pages a block has more pieces than a request of most disks may have, so
    // that each becomes two.
    fio.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    fio.args([
        "--output-format=json",
        "--thread",
        "--iomem_align=2M",
        "--direct=1",
        "--bs=1M",
        "--ioengine=libaio",
        "--fallocate=truncate",
        "--end_fsync=1",
        "--name=ceiling",
    ]);
    fio.arg(format!("--rw={way}"));
    fio.arg(format!("--iodepth={depth}"));
    fio.arg(format!("--size={bytes}"));
    fio.arg(format!("--filename={}", file.display()));
    let report = json("fio", &tools::run(&mut fio)?)?;
    if way == "write" {
        fs::remove_file(file).at("remove", file)?;
    }
    let ms = number("fio", &report["jobs"][0]["job_runtime"], "a run time")?;
    Ok(bytes as f64 / GIB as f64 / (ms / 1000.0))
}

/// Processor seconds for a GiB of AES-128-GCM: a thread encrypts what a TLS record holds, again and again.
fn openssl(tools: &Tools) -> Result<f64, Error> {
    let mut openssl = tools.command("openssl");
    openssl.args(["speed", "-mr", "-seconds", "1", "-bytes", "16384"]);
    openssl.args(["-evp", "aes-128-gcm"]);
    openssl_rate(&tools::run(&mut openssl)?)
}

/// The last word of `+F:25:AES-128-GCM:5905580032.00`: bytes in a second of processor time.
fn openssl_rate(text: &str) -> Result<f64, Error> {
    let line = text.lines().find(|line| line.starts_with("+F:"));
    let rate = line.and_then(|line| line.rsplit(':').next()?.parse::<f64>().ok());
    let missing = Error::Output {
        program: "openssl",
        what: "the rate",
    };
    rate.map(|rate| GIB as f64 / rate).ok_or(missing)
}

/// Processor seconds of both ends for a GiB over loopback.
fn iperf3(tools: &Tools) -> Result<f64, Error> {
    let port = port::free()?;
    let mut server = tools.command("iperf3");
    server.args(["--server", "--one-off", "--port", &port.to_string()]);
    server.stdout(std::process::Stdio::null());
    let _server = Ended(server.spawn().at("start", "iperf3")?);
    let until = Instant::now() + Duration::from_secs(5);
    while !port::is_listening(port)? && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut client: Command = tools.command("iperf3");
    client.args(["--client", "127.0.0.1", "--json", "--time", "1"]);
    client.args(["--port", &port.to_string()]);
    iperf3_cost(&json("iperf3", &tools::run(&mut client)?)?)
}

/// Processor seconds for a GiB, from the client's report, which has both ends' share of a processor.
fn iperf3_cost(report: &Value) -> Result<f64, Error> {
    let of = |value, what| number("iperf3", value, what);
    let (end, sent) = (&report["end"], &report["end"]["sum_sent"]);
    let cpu = &end["cpu_utilization_percent"];
    let percent = of(&cpu["host_total"], "its processor time")?
        + of(&cpu["remote_total"], "the server's processor time")?;
    let seconds = of(&sent["seconds"], "a time")?;
    let bytes = of(&sent["bytes"], "the bytes")?;
    Ok(percent / 100.0 * seconds / bytes * GIB as f64)
}

/// A server that is gone when nobody needs it, whether or not a client came.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // One that has served its client is gone already.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn json(program: &'static str, text: &str) -> Result<Value, Error> {
    let what = "JSON";
    serde_json::from_str(text).map_err(|_| Error::Output { program, what })
}

fn number(program: &'static str, value: &Value, what: &'static str) -> Result<f64, Error> {
    let found = value.as_f64().filter(|found| *found > 0.0);
    found.ok_or(Error::Output { program, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_medians_and_their_difference_is_that_of_a_round() {
        // The machine is half as fast in the last round, for both.
        let (here, beside) = ([1.1, 1.2, 0.55], [1.0, 1.1, 0.5]);
        let line = line("reading", "GiB/s", "fio", &here, &beside);
        assert_eq!(
            line,
            "| reading | GiB/s | 1.10 | 59 % | fio | 1.00 | 60 % | +10 % |"
        );
    }

    #[test]
    fn what_other_programs_say_is_understood() {
        let text =
            "+DT:AES-128-GCM:1:16384\n+R:1:AES-128-GCM:1.0\n+F:25:AES-128-GCM:2147483648.00\n";
        assert_eq!(openssl_rate(text).unwrap(), 0.5);
        assert!(openssl_rate("speed: unknown").is_err());
        let report = serde_json::json!({"end": {
            "sum_sent": {"seconds": 2.0, "bytes": 4 * GIB},
            "cpu_utilization_percent": {"host_total": 60.0, "remote_total": 40.0}}});
        assert_eq!(iperf3_cost(&report).unwrap(), 0.5);
        assert!(iperf3_cost(&Value::Null).is_err());
    }
}

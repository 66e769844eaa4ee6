//! A process of the benchmark: has the memory and the engines, does what it is told over its standard input.

use std::io::{BufRead, Write};
use std::time::Instant;

use super::engine::Engines;
use super::protocol::{Job, MARK, Message, Reply, Setup};
use crate::deepspeed::LockedTensor;
use crate::noise::fill;
use crate::sys_process::reason;

type Result<T> = std::result::Result<T, String>;

/// Does rounds until standard input ends. The hidden command `bench-worker` is this.
///
/// # Errors
///
/// When standard output cannot be written; anything else is told there.
pub fn work() -> std::io::Result<()> {
    let mut input = std::io::stdin().lock().lines();
    let mut worker: Option<Worker> = None;
    while let Some(line) = input.next().transpose()? {
        let outcome = match serde_json::from_str(&line) {
            Ok(Message::Setup(setup)) => Worker::new(&setup).map(|new| {
                worker = Some(new);
                Reply::Ready
            }),
            Ok(Message::Job(job)) => match &mut worker {
                Some(worker) => worker.round(&job, &mut input),
                None => Err("a job came before the setup".to_owned()),
            },
            Ok(Message::Go | Message::Release) => Err("no round is under way".to_owned()),
            Err(error) => Err(format!("not understood: {error}")),
        };
        match outcome {
            Ok(reply) => say(&reply)?,
            Err(line) => return say(&Reply::Failed(line)),
        }
    }
    Ok(())
}

fn note(line: String) -> Result<()> {
    say(&Reply::Note(line)).map_err(|error| reason(&error))
}

fn say(reply: &Reply) -> std::io::Result<()> {
    let text = serde_json::to_string(reply)?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "{MARK}{text}")?;
    output.flush()
}

struct Worker {
    engines: Engines,
    memory: Option<LockedTensor>,
}

impl Worker {
    fn new(setup: &Setup) -> Result<Self> {
        let bytes = usize::try_from(setup.memory).map_err(|error| error.to_string())?;
        let mut memory = LockedTensor::new(bytes)
            .map_err(|error| format!("memory of {bytes} bytes: {}", reason(&error)))?;
        if let Some(refusal) = memory.lock_refusal() {
            note(format!("the processes' memory is not locked: {refusal}"))?;
        }
        if memory.huge() != "none" {
            let huge = memory.huge();
            note(format!("the processes' memory is in huge pages ({huge}), as that of fio-huge"))?;
        }
        fill(&mut memory, setup.seed);
        Ok(Self { engines: Engines::new(setup), memory: Some(memory) })
    }

    fn round(
        &mut self, job: &Job, input: &mut impl Iterator<Item = std::io::Result<String>>,
    ) -> Result<Reply> {
        let mut memory = self.memory.take().ok_or("the memory was lost by a failed round")?;
        if let Some(refusal) = self.engines.prepare(job)? {
            note(format!("the aio handle works without io_uring: {refusal}"))?;
        }
        if job.validate && job.access == super::Access::Read {
            memory.fill(0);
        }
        say(&Reply::Ready).map_err(|error| reason(&error))?;
        expect(input, |message| matches!(message, Message::Go))?;
        let started = Instant::now();
        let memory = self.engines.run(job, memory)?;
        let task = started.elapsed();
        say(&Reply::Done).map_err(|error| reason(&error))?;
        expect(input, |message| matches!(message, Message::Release))?;
        let e2e = started.elapsed();
        if job.validate {
            compare(job, &memory)?;
        }
        self.memory = Some(memory);
        Ok(Reply::Finished { task: task.as_secs_f64(), e2e: e2e.as_secs_f64() })
    }
}

fn expect(
    input: &mut impl Iterator<Item = std::io::Result<String>>, wanted: impl Fn(&Message) -> bool,
) -> Result<()> {
    let line = input.next().ok_or("the benchmark went away")?.map_err(|error| reason(&error))?;
    match serde_json::from_str(&line) {
        Ok(message) if wanted(&message) => Ok(()),
        _ => Err(format!("not expected: {line}")),
    }
}

/// Reads every file once more, plainly, and compares it with the memory.
fn compare(job: &Job, memory: &[u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let each = usize::try_from(job.each).map_err(|error| error.to_string())?;
    let mut block = vec![0; each.min(1 << 20)];
    for (path, expected) in job.files.iter().zip(memory.chunks(each)) {
        let failed =
            |error: std::io::Error| format!("validating {}: {}", path.display(), reason(&error));
        let file = std::fs::File::open(path).map_err(failed)?;
        for (index, part) in expected.chunks(block.len()).enumerate() {
            let offset = (index * block.len()) as u64;
            file.read_exact_at(&mut block[..part.len()], offset).map_err(failed)?;
            if let Some(at) = part.iter().zip(&block).position(|(here, there)| here != there) {
                let at = offset + at as u64;
                return Err(format!(
                    "validating {}: file and memory differ at byte {at}",
                    path.display()
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Access, Engine, Order};

    #[test]
    fn a_single_changed_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut bytes = vec![0; 3 << 20];
        fill(&mut bytes, 4);
        std::fs::write(&path, &bytes).unwrap();
        let job = Job {
            engine: Engine::Posix,
            files: vec![path],
            each: bytes.len() as u64,
            access: Access::Read,
            order: Order::Sequential,
            seed: 0,
            sync: false,
            validate: true,
        };
        compare(&job, &bytes).unwrap();
        bytes[(2 << 20) + 5] ^= 1;
        let line = compare(&job, &bytes).unwrap_err();
        assert!(line.ends_with("differ at byte 2097157"), "{line}");
    }
}

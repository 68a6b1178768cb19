//! Disks that are full, or that never answer.

use crate::scene::{Failure, Outcome, PATIENCE, Two, ensure, judged, nobody, others, with};
use lab::Spec;
use std::{fs, io::Write, path::Path, process::Command, time::Duration};

pub fn a_full_disk_forbids_voting_and_says_so() -> Outcome {
    with(Spec::default(), |cluster| {
        let master = cluster.settle()?;
        let slaves = others(cluster, master);
        let full = slaves[0];
        cluster.stop(full)?;
        let filler = cluster.state_dir(full).join("filler");
        let fill = || -> std::io::Result<()> {
            let mut file = fs::File::create(&filler)?;
            while file.write_all(&[0; 4096]).is_ok() {}
            Ok(())
        };
        ensure(fill().is_ok(), "cannot fill the disk")?;
        // It starts and cannot reserve more terms. The master's own term was reserved before; the next is not, and
        // without this server's vote for it nobody can follow the master.
        cluster.start_server(full)?;
        cluster.power_loss(master)?;
        nobody(
            cluster,
            "of two voters one cannot reserve terms",
            Duration::from_secs(4),
        )?;
        let log = cluster.log(full);
        let told = log
            .lines()
            .any(|l| l.contains("No space left") && l.contains("reservation"));
        ensure(told, "no error names the reservation and the full disk")?;
        // Space again: it reserves, votes, and the cluster has a master without anybody's help.
        ensure(fs::remove_file(&filler).is_ok(), "cannot empty the disk")?;
        cluster.wait_master(0, Some(master))?;
        cluster.power_on(master)?;
        cluster.settle()?;
        Ok(())
    })
}

/// Makes every sync of a file wait while the file `hold` exists.
fn slow_sync(hold: &Path) -> Result<String, Failure> {
    let library = Path::new(lab::FOLDER).join("slow_sync.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/netns/slow_sync.c");
    let define = format!("-DHOLD=\"{}\"", hold.display());
    let mut command = Command::new("cc");
    command
        .args(["-shared", "-fPIC", "-O1", &define, "-o"])
        .arg(&library)
        .arg(source);
    match command.output() {
        Ok(output) if output.status.success() => Ok(library.display().to_string()),
        Ok(output) => Err(Failure::Wrong(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )),
        Err(error) => Err(Failure::Skip(format!(
            "no C compiler for a slow disk: {error}"
        ))),
    }
}

pub fn a_stuck_disk_delays_no_election() -> Outcome {
    judged(Spec::default(), Two::Never, |cluster| {
        let hold = Path::new(lab::FOLDER).join("hold-syncs");
        let library = slow_sync(&hold)?;
        for server in 0..3 {
            cluster.init(server)?;
            cluster.set_environment(server, "LD_PRELOAD", &library);
            cluster.start_server(server)?;
        }
        cluster.settle()?;
        // From now on no disk of the cluster answers. Elections go on: their terms are reserved already.
        ensure(fs::write(&hold, "").is_ok(), "cannot stop the disks")?;
        let first = cluster.wait_master(0, None)?;
        let target = others(cluster, first)[0];
        let name = cluster.name(target).to_owned();
        cluster.tell(first, &["promote", &name])?;
        lab::wait_for(&format!("{name} is master"), PATIENCE, || {
            cluster.master(0).filter(|m| *m == target)
        })?;
        cluster.power_loss(target)?;
        let last = cluster.wait_master(0, Some(target))?;
        // A server that starts needs the disk once: until it answers, the server has no vote. So with a second
        // voter gone there is no majority.
        cluster.power_on(target)?;
        let other = others(cluster, target)
            .into_iter()
            .find(|s| *s != last)
            .unwrap_or(last);
        cluster.power_loss(other)?;
        nobody(
            cluster,
            "one voter is away and one waits for its disk",
            Duration::from_secs(4),
        )?;
        ensure(fs::remove_file(&hold).is_ok(), "cannot start the disks")?;
        cluster.wait_master(0, None)?;
        cluster.power_on(other)?;
        cluster.settle()?;
        Ok(())
    })
}

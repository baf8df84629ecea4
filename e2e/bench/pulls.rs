//! Pulls from a registry on loopback: wall time, and CPU time of the daemon for large images.

use std::time::Instant;

use anyhow::Result;
use cri::proto::runtime::v1::*;

use crate::Runtime;
use crate::daemon::{cpu_seconds, daemon_pid};
use crate::table::Table;

/// A small image, `rounds` times; it is left pulled.
pub(crate) async fn small(runtimes: &[Runtime], image: &str, rounds: usize, table: &mut Table) -> Result<()> {
    for _ in 0..rounds.max(1) {
        for runtime in runtimes {
            let wall = pull(runtime, image).await?;
            table.add("pull small", "ms", &runtime.name, wall * 1e3);
        }
    }
    Ok(())
}

/// A large image, three times; it is removed in the end.
pub(crate) async fn large(runtimes: &[Runtime], name: &str, image: &str, table: &mut Table) -> Result<()> {
    for _ in 0..3 {
        for runtime in runtimes {
            let pid = daemon_pid(&runtime.socket)?;
            let before = cpu_seconds(pid)?;
            let wall = pull(runtime, image).await?;
            table.add(&format!("pull {name}"), "s", &runtime.name, wall);
            table.add(
                &format!("pull {name}, CPU of the daemon"),
                "s",
                &runtime.name,
                cpu_seconds(pid)? - before,
            );
            remove(runtime, image).await?;
        }
    }
    Ok(())
}

/// Remove it, then pull it; seconds of the pull.
async fn pull(runtime: &Runtime, image: &str) -> Result<f64> {
    remove(runtime, image).await?;
    let request = PullImageRequest { image: Some(spec(image)), ..Default::default() };
    let start = Instant::now();
    let reply = runtime.node.images.clone().pull_image(request).await;
    reply.map_err(|status| anyhow::anyhow!("{}: pull {image}: {}", runtime.name, status.message()))?;
    Ok(start.elapsed().as_secs_f64())
}

async fn remove(runtime: &Runtime, image: &str) -> Result<()> {
    let request = RemoveImageRequest { image: Some(spec(image)) };
    let reply = runtime.node.images.clone().remove_image(request).await;
    reply.map_err(|status| anyhow::anyhow!("{}: remove {image}: {}", runtime.name, status.message()))?;
    Ok(())
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

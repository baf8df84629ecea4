//! Pulls one image into a store and tells how long it took: `pull REFERENCE ROOT`. For measuring by hand.

use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(reference), Some(root)) = (args.next(), args.next()) else {
        return Err("usage: pull REFERENCE ROOT".into());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let settings = image::Settings { root: root.into(), ..image::Settings::default() };
        let store = image::Store::open(settings).await?;
        let begun = Instant::now();
        let id = store.pull(&reference, None).await?;
        let usage = store.usage()?;
        println!(
            "{id}: {:.2} s, {} MB in {} files",
            begun.elapsed().as_secs_f64(),
            usage.bytes / 1_000_000,
            usage.inodes
        );
        Ok(())
    })
}

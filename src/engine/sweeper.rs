//! What belongs to nobody: swept after the start, and looked for from time to time.
//!
//! A pod is in the index from before its first thing is acquired until its last one is given back, so what belongs to a pod that
//! is not in it belongs to nobody, at any time. The tasks here end with the engine.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::sleep;

use crate::context::Context;
use crate::debts::{self, Debt, FIRST_PAUSE, LONGEST_PAUSE};

/// Pay what was found at the start, until it is paid.
pub(crate) async fn sweep(ctx: Arc<Context>, mut debts: Vec<Debt>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let (unpaid, failures) = debts::pay(&ctx, debts).await;
        let Some(error) = debts::as_error("sweep what belongs to nobody".to_owned(), failures) else {
            return;
        };
        tracing::warn!(error = error.chain(), "not everything could be swept yet");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        debts = unpaid;
    }
}

/// Every so often: release the networks of pods that are gone, and have the CNI plugins drop what they keep for them.
pub(crate) async fn sweep_now_and_then(ctx: Weak<Context>, every: Duration) {
    loop {
        sleep(every).await;
        let Some(ctx) = ctx.upgrade().filter(|ctx| ctx.index.admit().is_ok()) else { return };
        ctx.network.collect_garbage_but(|pod| ctx.index.keeps(pod)).await;
    }
}

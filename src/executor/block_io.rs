//! Limits of block I/O as writes to cgroup files: weights (10…1000, on v2 1…10000) and rates by device.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use crate::error::{Error, Result};
use crate::resources::{Writes, invalid};

/// A weight of block I/O that is asked for; 0 is none.
fn weight_of(field: &str, weight: Option<u16>) -> Result<Option<u16>> {
    match weight {
        None | Some(0) => Ok(None),
        Some(10..=1000) => Ok(weight),
        Some(_) => Err(invalid(field, "is not from 10 to 1000")),
    }
}

/// For the `blkio` controller of v1.
pub(crate) fn v1(io: &LinuxBlockIo, writes: &mut Writes) -> Result<()> {
    if let Some(weight) = weight_of("blockIO.weight", io.weight())? {
        let weight = weight.to_string();
        let files = [("blkio.weight", weight.clone()), ("blkio.bfq.weight", weight)];
        writes.add_weight("blockIO.weight", "blkio", &files);
    }
    if let Some(weight) = weight_of("blockIO.leafWeight", io.leaf_weight())? {
        writes.add_weight("blockIO.leafWeight", "blkio", &[("blkio.leaf_weight", weight.to_string())]);
    }
    for device in io.weight_device().iter().flatten() {
        let number = format!("{}:{}", device.major(), device.minor());
        let field = format!("blockIO.weightDevice of {number}");
        if let Some(weight) = weight_of(&field, device.weight())? {
            let value = format!("{number} {weight}");
            let files = [("blkio.weight_device", value.clone()), ("blkio.bfq.weight_device", value)];
            writes.add_weight(&field, "blkio", &files);
        }
        let field = format!("blockIO.weightDevice (leafWeight) of {number}");
        if let Some(weight) = weight_of(&field, device.leaf_weight())? {
            writes.add_weight(&field, "blkio", &[("blkio.leaf_weight_device", format!("{number} {weight}"))]);
        }
    }
    for (name, list) in throttles(io) {
        let file = match name {
            "rbps" => "blkio.throttle.read_bps_device",
            "wbps" => "blkio.throttle.write_bps_device",
            "riops" => "blkio.throttle.read_iops_device",
            _ => "blkio.throttle.write_iops_device",
        };
        for device in list {
            writes.add("blkio", file, format!("{}:{} {}", device.major(), device.minor(), device.rate()));
        }
    }
    Ok(())
}

/// For the `io` controller of v2.
pub(crate) fn v2(io: &LinuxBlockIo, writes: &mut Writes) -> Result<()> {
    if io.leaf_weight().is_some_and(|w| w != 0) {
        return Err(Error::unsupported("set limit", "blockIO.leafWeight", "exists on cgroup v1 only"));
    }
    if let Some(weight) = weight_of("blockIO.weight", io.weight())? {
        let files = [("io.bfq.weight", weight.to_string()), ("io.weight", io_weight(weight).to_string())];
        writes.add_weight("blockIO.weight", "io", &files);
    }
    for device in io.weight_device().iter().flatten() {
        if device.leaf_weight().is_some_and(|w| w != 0) {
            return Err(Error::unsupported(
                "set limit",
                "blockIO.weightDevice.leafWeight",
                "exists on cgroup v1 only",
            ));
        }
        let number = format!("{}:{}", device.major(), device.minor());
        let field = format!("blockIO.weightDevice of {number}");
        if let Some(weight) = weight_of(&field, device.weight())? {
            let files = [
                ("io.bfq.weight", format!("{number} {weight}")),
                ("io.weight", format!("{number} {}", io_weight(weight))),
            ];
            writes.add_weight(&field, "io", &files);
        }
    }
    for (name, list) in throttles(io) {
        for device in list {
            writes.add(
                "io",
                "io.max",
                format!("{}:{} {name}={}", device.major(), device.minor(), device.rate()),
            );
        }
    }
    Ok(())
}

fn throttles(io: &LinuxBlockIo) -> [(&'static str, &[LinuxThrottleDevice]); 4] {
    fn list(devices: &Option<Vec<LinuxThrottleDevice>>) -> &[LinuxThrottleDevice] {
        devices.as_deref().unwrap_or_default()
    }
    [
        ("rbps", list(io.throttle_read_bps_device())),
        ("wbps", list(io.throttle_write_bps_device())),
        ("riops", list(io.throttle_read_iops_device())),
        ("wiops", list(io.throttle_write_iops_device())),
    ]
}

/// 10…1000 as 1…10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::io_weight;

    #[test]
    fn weights_keep_both_ends() {
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }
}

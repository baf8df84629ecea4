//! Media types of image content: OCI image-spec and Docker's image manifest version 2, schema 2.

/// What a manifest-like document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image: a config and layers.
    Manifest,
    /// A list of manifests, one per platform.
    Index,
}

/// How a layer's tar archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not compressed.
    Plain,
    /// gzip, perhaps of several members.
    Gzip,
    /// Zstandard, perhaps of several frames.
    Zstd,
}

/// An OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What a client that understands all of the above sends as `Accept`.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Which document a media type names; `None` for any other type. Parameters (`; charset=…`) are ignored.
pub fn document(media_type: &str) -> Option<Document> {
    match bare(media_type) {
        OCI_MANIFEST | DOCKER_MANIFEST => Some(Document::Manifest),
        OCI_INDEX | DOCKER_LIST => Some(Document::Index),
        _ => None,
    }
}

/// Whether this is the configuration of a container image.
pub fn is_config(media_type: &str) -> bool {
    matches!(
        bare(media_type),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

/// How a layer of this media type is packed; `None` when it is no file system layer (or an encrypted one).
pub fn layer(media_type: &str) -> Option<Packing> {
    match bare(media_type) {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Some(Packing::Plain),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Packing::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Packing::Zstd),
        _ => None,
    }
}

fn bare(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        assert_eq!(document("application/vnd.oci.image.index.v1+json; charset=utf-8"), Some(Document::Index));
        assert_eq!(document("text/html"), None);
        assert_eq!(layer("application/vnd.oci.image.layer.v1.tar+zstd"), Some(Packing::Zstd));
        assert_eq!(layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), None);
        for accepted in ACCEPT.split(',') {
            assert!(document(accepted).is_some());
        }
    }
}

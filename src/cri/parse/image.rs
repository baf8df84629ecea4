//! PullImage and the other calls that name an image.

use engine::Result;
use engine::image::Auth;

use super::{filled, required};
use crate::proto::runtime::v1 as wire;

/// The reference and the credentials of PullImage. All handlers use the same images, so its handler says nothing.
pub(crate) fn pull(request: wire::PullImageRequest) -> Result<(String, Option<Auth>)> {
    let image = required(request.image, "image")?;
    Ok((filled(image.image, "image.image")?, auth(request.auth)))
}

/// The image that a request names.
pub(crate) fn name(image: Option<wire::ImageSpec>) -> Result<String> {
    filled(required(image, "image")?.image, "image.image")
}

/// What ListImages is limited to; empty: nothing.
pub(crate) fn filter(from: Option<wire::ImageFilter>) -> String {
    from.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default()
}

/// An empty message means anonymous, as an absent one does.
fn auth(from: Option<wire::AuthConfig>) -> Option<Auth> {
    let from = from.filter(|auth| *auth != wire::AuthConfig::default())?;
    Some(Auth {
        username: from.username,
        password: from.password,
        auth: from.auth,
        identity_token: from.identity_token,
        registry_token: from.registry_token,
        server_address: from.server_address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_arrive_and_empty_ones_are_anonymous() {
        let spec = || Some(wire::ImageSpec { image: "busybox".into(), ..Default::default() });
        let request = wire::PullImageRequest {
            image: spec(),
            auth: Some(wire::AuthConfig {
                username: "u".into(),
                password: "p".into(),
                auth: "a".into(),
                server_address: "s".into(),
                identity_token: "i".into(),
                registry_token: "r".into(),
            }),
            sandbox_config: None,
        };
        let (reference, auth) = pull(request).unwrap();
        let auth = auth.unwrap();
        assert_eq!(reference, "busybox");
        assert_eq!((auth.username.as_str(), auth.password.as_str(), auth.auth.as_str()), ("u", "p", "a"));
        assert_eq!(
            (auth.server_address.as_str(), auth.identity_token.as_str(), auth.registry_token.as_str()),
            ("s", "i", "r")
        );
        let request =
            wire::PullImageRequest { image: spec(), auth: Some(Default::default()), sandbox_config: None };
        assert!(pull(request).unwrap().1.is_none());
    }

    #[test]
    fn an_image_must_be_named() {
        assert_eq!(name(None).unwrap_err().context, "image: missing");
        assert_eq!(name(Some(Default::default())).unwrap_err().context, "image.image: missing");
        assert_eq!(filter(None), "");
    }
}

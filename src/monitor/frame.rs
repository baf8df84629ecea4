//! Frames of the protocol: a little-endian u32 length and that many bytes of JSON. Pure: no I/O.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest request a monitor takes, in bytes (a command line may be 2 MiB long).
pub const MAX_REQUEST: usize = 4 << 20;

/// Longest reply a client takes, in bytes.
pub const MAX_REPLY: usize = 16 << 20;

const HEAD: usize = 4;

/// Bytes that are not a frame, or not the message that was expected.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The head announces more than the limit.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// The text is not the message.
    #[error("not a message of the protocol: {0}")]
    Text(#[from] serde_json::Error),
}

/// One message as a frame.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEAD];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEAD;
    let head = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    frame[..HEAD].copy_from_slice(&head.to_le_bytes());
    Ok(frame)
}

/// The text of the frame at the start of `buffer`, when it is all there.
pub fn text(buffer: &[u8], limit: usize) -> Result<Option<&[u8]>, FrameError> {
    let Some(head) = buffer.first_chunk::<HEAD>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > limit {
        return Err(FrameError::TooLong(length));
    }
    Ok(buffer.get(HEAD..HEAD + length))
}

/// Take the message at the start of `buffer` out of it, when it is all there.
pub fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>, limit: usize) -> Result<Option<T>, FrameError> {
    let Some(text) = text(buffer, limit)? else { return Ok(None) };
    let (length, message) = (text.len(), serde_json::from_slice(text)?);
    buffer.drain(..HEAD + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Reply, Request};
    use proptest::prelude::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = encode(&Request::Watch).expect("encode");
        bytes.extend(encode(&Request::State).expect("encode"));
        let mut buffer = Vec::new();
        let mut seen = Vec::new();
        for byte in bytes {
            buffer.push(byte);
            while let Some(request) = take::<Request>(&mut buffer, MAX_REQUEST).expect("frame") {
                seen.push(format!("{request:?}"));
            }
        }
        assert_eq!(seen, ["Watch", "State"]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_long_frame_is_refused_by_its_head() {
        let mut buffer = (MAX_REQUEST as u32 + 1).to_le_bytes().to_vec();
        assert!(matches!(take::<Request>(&mut buffer, MAX_REQUEST), Err(FrameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0u32..100) {
            let _ = take::<Reply>(&mut bytes.clone(), MAX_REPLY);
            bytes.splice(0..0, length.to_le_bytes());
            let _ = take::<Request>(&mut bytes, MAX_REQUEST);
        }
    }
}

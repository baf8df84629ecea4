//! How a session's end is told on its error stream: as text, or (from v4 on) as the JSON of a Kubernetes `Status`.

use serde_json::{Value, json};

use crate::{End, Refusal};

/// The language of an error stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    /// A text when something is wrong, else nothing. Exit codes are only words.
    Text,
    /// A `Status`, also when nothing is wrong.
    Json,
}

/// What an end is on the error stream.
pub(crate) fn of_end(end: &End, language: Language) -> Vec<u8> {
    match end {
        End::Exited(0) | End::Detached => success(language),
        End::Exited(code) => {
            let message = format!("command terminated with exit code {code}");
            let cause = json!({ "reason": "ExitCode", "message": code.to_string() });
            let details = json!({ "causes": [cause] });
            failure(language, &message, "NonZeroExitCode", |status| status["details"] = details)
        }
        End::Failed(message) => internal(language, message),
    }
}

/// What a refusal is on the error stream.
pub(crate) fn of_refusal(refusal: &Refusal, language: Language) -> Vec<u8> {
    internal(language, &refusal.message)
}

fn success(language: Language) -> Vec<u8> {
    match language {
        Language::Text => Vec::new(),
        Language::Json => json!({ "metadata": {}, "status": "Success" }).to_string().into_bytes(),
    }
}

fn internal(language: Language, message: &str) -> Vec<u8> {
    failure(language, message, "InternalError", |status| status["code"] = 500.into())
}

fn failure(language: Language, message: &str, reason: &str, more: impl FnOnce(&mut Value)) -> Vec<u8> {
    if language == Language::Text {
        return message.as_bytes().to_vec();
    }
    let mut status = json!({ "metadata": {}, "status": "Failure", "message": message, "reason": reason });
    more(&mut status);
    status.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_in_both_languages() {
        let cases = [
            (End::Exited(0), "", r#"{"metadata":{},"status":"Success"}"#),
            (End::Detached, "", r#"{"metadata":{},"status":"Success"}"#),
            (
                End::Exited(3),
                "command terminated with exit code 3",
                r#"{"details":{"causes":[{"message":"3","reason":"ExitCode"}]},"message":"command terminated with exit code 3","metadata":{},"reason":"NonZeroExitCode","status":"Failure"}"#,
            ),
            (
                End::Failed("no \"x\"".to_owned()),
                "no \"x\"",
                r#"{"code":500,"message":"no \"x\"","metadata":{},"reason":"InternalError","status":"Failure"}"#,
            ),
        ];
        for (end, text, object) in cases {
            assert_eq!(String::from_utf8(of_end(&end, Language::Text)).expect("text"), text);
            let told: Value = serde_json::from_slice(&of_end(&end, Language::Json)).expect("JSON");
            assert_eq!(told, serde_json::from_str::<Value>(object).expect("JSON"));
        }
    }
}

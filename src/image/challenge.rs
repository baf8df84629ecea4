//! `WWW-Authenticate` headers (RFC 9110, 11.6.1): what a registry asks for.

use std::collections::BTreeMap;

/// One challenge: scheme in lower case, parameters with keys in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: String,
    pub(crate) params: BTreeMap<String, String>,
}

impl Challenge {
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.params.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// The challenges of one header value. What cannot be understood ends the list: what came before still counts.
pub(crate) fn parse(text: &str) -> Vec<Challenge> {
    let mut input = Input { rest: text };
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        input.skip(|c| c == ',' || c.is_ascii_whitespace());
        let word = input.token();
        if word.is_empty() {
            return challenges;
        }
        input.skip(|c| c == ' ' || c == '\t');
        match (input.rest.strip_prefix('='), challenges.last_mut()) {
            // `word=` belongs to the challenge before, any other word begins one
            (Some(rest), Some(challenge)) => {
                input.rest = rest;
                let Some(value) = input.value() else { return challenges };
                challenge.params.insert(word.to_ascii_lowercase(), value);
            }
            (Some(_), None) => return challenges,
            (None, _) => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), params: BTreeMap::new() });
            }
        }
    }
}

struct Input<'a> {
    rest: &'a str,
}

impl<'a> Input<'a> {
    fn skip(&mut self, what: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(what);
    }

    fn token(&mut self) -> &'a str {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c)))
            .unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token
    }

    fn value(&mut self) -> Option<String> {
        self.skip(|c| c == ' ' || c == '\t');
        let Some(quoted) = self.rest.strip_prefix('"') else {
            return Some(self.token().to_owned());
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                c => value.push(c),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_ones() {
        let list =
            parse(r#"Bearer realm="https://a.example/token",service="s, t",scope="repository:x:pull,push""#);
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].scheme, "bearer");
        assert_eq!(list[0].get("realm"), Some("https://a.example/token"));
        assert_eq!(list[0].get("service"), Some("s, t"));
        assert_eq!(list[0].get("scope"), Some("repository:x:pull,push"));

        let list = parse(r#"Negotiate, Basic Realm="a \"b\"" , charset=UTF-8, Bearer realm=x"#);
        let schemes: Vec<&str> = list.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(list[1].get("realm"), Some("a \"b\""));
        assert_eq!(list[1].get("charset"), Some("UTF-8"));
    }

    #[test]
    fn broken_ones() {
        assert_eq!(parse(""), []);
        assert_eq!(parse("=x"), []);
        assert_eq!(parse(r#"Basic realm="open"#)[0].scheme, "basic");
    }

    proptest! {
        #[test]
        fn any_text_ends(text in ".{0,100}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_was_quoted_comes_back(value in "[ -~]{1,30}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let list = parse(&format!("Bearer realm=\"{quoted}\", service=s"));
            prop_assert_eq!(list[0].get("realm"), Some(value.as_str()));
            prop_assert_eq!(list[0].get("service"), Some("s"));
        }
    }
}

//! The fuzz target for credentials.

use std::{
    env, fs, process,
    sync::LazyLock,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::HeaderValue;
use ring::hmac;
use serde_json::Value;

use crate::auth::{Algorithm, Auth, Role, Settings, credentials::Credentials, keys::KeyFile};

const SECRET: &[u8] = b"what the issuer of the tokens knows";

const AUDIENCE: &str = "hashfinder";

/// Time at which the tokens are checked, in seconds since 1970.
const NOW: u64 = 1_900_000_000;

/// The authentication of a server, with one key and one issuer.
struct Door {
    auth: Auth,
    /// The credential of the key's bearer.
    key: String,
}

/// Checks a credential, or parses a file of keys. The first byte selects what the rest of the input
/// is: an `authorization` header; a mask that is XORed with the valid key; the header and the
/// claims of a token that the issuer signs, separated by a newline; or a file of keys.
///
/// # Panics
///
/// If a credential is accepted that is neither the key nor a valid token of the issuer; if the key
/// is rejected; or if writing a file of keys and reading it again changes the keys.
pub fn credential(data: &[u8]) {
    static DOOR: LazyLock<Door> = LazyLock::new(Door::new);
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => DOOR.header(data),
        1 => DOOR.bent(data),
        2 => DOOR.token(data),
        _ => file(data),
    }
}

impl Door {
    fn new() -> Door {
        let folder = env::temp_dir().join(format!("hashfinder-fuzz-{}", process::id()));
        let (keys, secret) = (folder.join("keys.toml"), folder.join("secret"));
        let made = fs::create_dir(&folder).and_then(|()| fs::write(&secret, SECRET));
        made.expect("a folder for the keys");
        let created = KeyFile::change(&keys, true, |file| file.create(Role::Operator, None, None));
        let (_, key) = created.expect("a key");
        let arguments = Settings {
            api_keys: Some(keys),
            jwt_secret: Some(secret),
            jwt_algorithms: vec![Algorithm::HS256],
            jwt_audience: Some(AUDIENCE.to_owned()),
            ..Settings::default()
        };
        let auth = Auth::load(&arguments, false).expect("the files are right");
        // Everything that matters has been read.
        let _ = fs::remove_dir_all(&folder);
        Door { auth, key }
    }

    fn header(&self, value: &[u8]) {
        let Ok(value) = HeaderValue::from_bytes(value) else {
            return;
        };
        let shows = value.to_str().is_ok_and(|text| text.contains(&self.key));
        let principal = self.auth.principal(None, &Credentials(vec![value]));
        // The input cannot contain a signature of the issuer.
        assert!(principal.is_err() || shows, "{principal:?}");
    }

    fn bent(&self, by: &[u8]) {
        let mut key = self.key.clone().into_bytes();
        for (byte, by) in key.iter_mut().zip(by) {
            *byte ^= by;
        }
        key.extend(by.get(key.len()..).unwrap_or_default());
        let is_right = key == self.key.as_bytes();
        let value = [b"Bearer ", &key[..]].concat();
        let Ok(value) = HeaderValue::from_bytes(&value) else {
            return;
        };
        let principal = self.auth.principal(None, &Credentials(vec![value]));
        assert_eq!(principal.is_ok(), is_right, "{principal:?}");
    }

    fn token(&self, data: &[u8]) {
        let mut parts = data.splitn(2, |byte| *byte == b'\n');
        let (header, claims) = (parts.next().unwrap_or_default(), parts.next());
        let Some(claims) = claims else {
            return;
        };
        let base64 = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
        let signed = format!("{}.{}", base64(header), base64(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
        let signature = base64(hmac::sign(&key, signed.as_bytes()).as_ref());
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        let Ok(principal) = self.auth.bearer(&format!("{signed}.{signature}"), now) else {
            return;
        };
        let read = |part: &[u8]| serde_json::from_slice::<Value>(part).expect("it was read");
        let (header, claims) = (read(header), read(claims));
        assert_eq!(header["alg"], "HS256");
        assert_eq!(principal.role, Role::User);
        let subject = claims["sub"].as_str().expect("there is a subject");
        assert_eq!(**principal.name.as_str(), format!("jwt:{subject}"));
        assert!(claims["exp"].as_f64().expect("there is an expiry") >= NOW as f64 - 60.0);
        assert!(claims["aud"].to_string().contains(AUDIENCE));
    }
}

fn file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match KeyFile::parse(text) {
        Ok(file) => {
            let again = KeyFile::parse(&file.text()).expect("what was read is written as it was");
            assert_eq!(again.entries(), file.entries());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

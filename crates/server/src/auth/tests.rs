//! Tests of which credentials are accepted.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::HeaderMap;
use jiff::Timestamp;
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};
use tonic::Request;
use tonic_cancel::CallContext;

use crate::auth::{
    Algorithm, Auth, Role, Settings,
    credentials::{Credentials, MAX_CREDENTIAL_LEN, Rejection},
    keys::{KeyFile, KeyId, State},
};

/// A temporary folder of one test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("hashfinder-auth-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Folder(folder)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn arguments() -> Settings {
    Settings {
        jwt_audience: Some("hashfinder".to_owned()),
        ..Settings::default()
    }
}

fn with_api_keys(path: &Path) -> Auth {
    let settings = Settings {
        api_keys: Some(path.to_owned()),
        ..Settings::default()
    };
    Auth::load(&settings, false).unwrap()
}

fn create(path: &Path, role: Role, expires: Option<Timestamp>) -> (KeyId, String) {
    KeyFile::change(path, true, |file| {
        file.create(role, expires, Some("a \"comment\"".to_owned()))
    })
    .unwrap()
}

fn revoke(path: &Path, id: &KeyId) -> Option<State> {
    KeyFile::change(path, false, |file| file.revoke(id)).unwrap()
}

/// Returns the name and the role of a caller with these headers, or the cause for the log.
fn shown(auth: &Auth, values: &[&str]) -> Result<(String, Role), String> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append("authorization", value.parse().unwrap());
    }
    let credentials = Credentials::taken_from(&mut headers);
    assert!(headers.is_empty());
    match auth.principal(None, &credentials) {
        Ok(principal) => Ok((principal.name.to_string(), principal.role)),
        Err(Rejection::Missing) => Err("missing".to_owned()),
        Err(Rejection::Rejected { why, .. }) => Err(why.to_owned()),
    }
}

fn bearer(auth: &Auth, credential: &str) -> Result<(String, Role), String> {
    shown(auth, &[&format!("Bearer {credential}")])
}

#[test]
fn without_configured_credentials_every_caller_is_accepted() {
    let mut none = arguments();
    none.jwt_audience = None;
    let auth = Auth::load(&none, false).unwrap();
    assert!(!auth.is_configured());
    let unknown = Ok(("nobody".to_owned(), Role::User));
    assert_eq!(shown(&auth, &[]), unknown);
    assert_eq!(shown(&auth, &["Bearer whatever", "Basic else"]), unknown);
}

#[test]
fn keys_work_until_they_expire_or_are_revoked() {
    let folder = Folder::new();
    let path = folder.0.join("keys.toml");
    let (user, secret) = create(&path, Role::User, None);
    let (_, operator) = create(&path, Role::Operator, Some(Timestamp::MAX));
    let (_, expired) = create(&path, Role::User, Some(Timestamp::UNIX_EPOCH));
    let (gone, revoked) = create(&path, Role::Operator, None);
    assert_eq!(revoke(&path, &gone), Some(State::Valid));
    assert_eq!(revoke(&path, &gone), Some(State::Revoked));
    assert_eq!(revoke(&path, &"no-such-key".parse().unwrap()), None);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    for credential in [&secret, &operator, &expired, &revoked] {
        let secret = credential.split_once('.').unwrap().1;
        assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(secret).unwrap().len(), 32);
        assert!(!text.contains(secret));
    }

    let auth = with_api_keys(&path);
    let name = format!("key:{user}");
    let role = |credential: &str| bearer(&auth, credential).map(|(_, role)| role);
    assert_eq!(bearer(&auth, &secret), Ok((name, Role::User)));
    assert_eq!(role(&operator), Ok(Role::Operator));
    let (secret_of_user, secret_of_other) = (
        secret.split_once('.').unwrap().1,
        operator.split_once('.').unwrap().1,
    );
    for (credential, why) in [
        (expired, "expired"),
        (revoked, "revoked"),
        (format!("{user}.{secret_of_other}"), "wrong secret"),
        (format!("0123456789abcdef.{secret_of_user}"), "unknown key"),
        (format!("{user}."), "malformed key"),
        (format!(".{secret_of_user}"), "unknown key"),
        (secret[..secret.len() - 1].to_owned(), "malformed key"),
        (format!("{secret}A"), "malformed key"),
        (format!("{secret}="), "malformed key"),
        (format!(" {secret}"), "unknown key"),
        (format!("{secret} "), "malformed key"),
        (user.to_string(), "unsupported kind of credential"),
        (format!("{secret}.x"), "unsupported kind of credential"),
        (String::new(), "unsupported kind of credential"),
        ("x".repeat(MAX_CREDENTIAL_LEN), "credential too long"),
    ] {
        assert_eq!(
            bearer(&auth, &credential),
            Err(why.to_owned()),
            "{credential:?}"
        );
    }
    assert_eq!(shown(&auth, &[]), Err("missing".to_owned()));
    let scheme = |scheme: &str| shown(&auth, &[&format!("{scheme} {secret}")]).is_ok();
    assert!(scheme("bearer") && scheme("BEARER") && !scheme("Basic") && !scheme("Bearer:"));
    assert!(shown(&auth, &[&secret]).is_err());
    let one = format!("Bearer {secret}");
    assert_eq!(
        shown(&auth, &[&one, &one]),
        Err("more than one authorization header".to_owned())
    );

    let operators = HashSet::from([format!("key:{user}").parse().unwrap()]);
    let auth = auth.with_operators(operators);
    assert_eq!(bearer(&auth, &secret).unwrap().1, Role::Operator);
}

#[test]
fn edits_around_keys_are_kept() {
    let folder = Folder::new();
    let path = folder.0.join("keys.toml");
    create(&path, Role::User, None);
    let edited = fs::read_to_string(&path).unwrap() + "# the last word\n";
    fs::write(&path, edited.replace("[[key]]", "# mine\n[[key]]")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let link = folder.0.join("link");
    std::os::unix::fs::symlink("keys.toml", &link).unwrap();
    create(&link, Role::User, None);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# API keys for"), "{text}");
    assert!(
        text.contains("# mine\n[[key]]\n") && text.contains("# the last word"),
        "{text}"
    );
    assert_eq!(KeyFile::read(&path).unwrap().entries().len(), 2);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);
}

#[test]
fn an_invalid_key_file_is_rejected() {
    let folder = Folder::new();
    let path = folder.0.join("keys.toml");
    create(&path, Role::User, Some(Timestamp::MAX));
    let good = fs::read_to_string(&path).unwrap();
    for (from, to, why) in [
        ("version = 1", "", "expected `version = 1`"),
        ("version = 1", "version = 2", "expected `version = 1`"),
        ("expires", "expire", "unknown field \"expire\""),
        ("\"user\"", "\"root\"", "unknown role"),
        ("\"user\"", "1", "role is not a string"),
        ("expires = 9", "expires = 9 #", "expires is not a time"),
        (
            "sha256 = \"",
            "sha256 = \"AAAA",
            "sha256 is missing or invalid",
        ),
        ("[[key]]", "[[keys]]", "unexpected \"keys\""),
        ("[[key]]", "[key]", "unexpected \"key\""),
        ("[[key]]", "[[key]", "invalid TOML"),
        ("id = \"", "id = \"a.b", "a key id"),
        ("created = ", "created = \"now\" #", "created is not a time"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        let path = folder.write("bad.toml", bad);
        let error = format!("{:#}", KeyFile::read(&path).err().unwrap());
        assert!(error.contains(why), "{from} {to}: {error}");
        assert!(KeyFile::change(&path, true, |file| file.create(Role::User, None, None)).is_err());
    }
    let key = good.split_once("[[key]]").unwrap().1;
    let twice = folder.write("twice.toml", format!("{good}\n[[key]]{key}"));
    let error = format!("{:#}", KeyFile::read(&twice).err().unwrap());
    assert!(error.contains("two keys have the id"), "{error}");
    assert!(KeyFile::read(&folder.0.join("none.toml")).is_err());
    assert!(KeyFile::read(&folder.write("empty.toml", "")).is_err());
}

#[test]
fn changes_to_the_key_file_take_effect() {
    let folder = Folder::new();
    let path = folder.0.join("keys.toml");
    let (id, revoked) = create(&path, Role::User, None);
    let (_, kept) = create(&path, Role::User, None);
    let auth = with_api_keys(&path);
    let begun = |credential: &str| {
        let mut headers = HeaderMap::new();
        headers.append(
            "authorization",
            format!("Bearer {credential}").parse().unwrap(),
        );
        let credentials = Credentials::taken_from(&mut headers);
        let principal = auth.principal(None, &credentials).unwrap();
        let context = CallContext::of(&Request::new(()));
        principal.begins(&context);
        (principal, context)
    };
    let ((principal, first), (_, second)) = (begun(&revoked), begun(&kept));
    let keys = auth.keys.as_ref().unwrap();
    let look = || keys.look_again();
    let added = create(&path, Role::Operator, None).1;
    assert!(bearer(&auth, &added).is_err());
    look();
    assert_eq!(bearer(&auth, &added).unwrap().1, Role::Operator);
    assert!(first.is_active());

    // A file that is wrong or missing changes nothing.
    let good = fs::read_to_string(&path).unwrap();
    for bad in ["", "version = 1\n[[key]]\n", "version ="] {
        folder.write("keys.toml", bad);
        look();
        assert!(bearer(&auth, &revoked).is_ok());
    }
    fs::remove_file(&path).unwrap();
    look();
    assert!(bearer(&auth, &revoked).is_ok() && first.is_active());
    folder.write("keys.toml", good);

    revoke(&path, &id);
    look();
    assert_eq!(bearer(&auth, &revoked), Err("revoked".to_owned()));
    assert!(!first.is_active());
    // A call that was authenticated before the revocation, and begins only now, is cancelled at
    // once.
    let late = CallContext::of(&Request::new(()));
    principal.begins(&late);
    assert!(!late.is_active());
    assert!(second.is_active() && bearer(&auth, &kept).is_ok());
}

/// Regression: a server that read the file while it was being overwritten lost keys. A file that is
/// a mount point is overwritten.
#[test]
fn a_key_file_is_not_loaded_while_it_is_overwritten() {
    let folder = Folder::new();
    let path = folder.0.join("keys.toml");
    let (id, revoked) = create(&path, Role::User, None);
    let (_, kept) = create(&path, Role::User, None);
    let auth = with_api_keys(&path);
    let keys = auth.keys.as_ref().unwrap();

    // As `keys revoke` does it, but stopped halfway.
    let whole = fs::read_to_string(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.lock().unwrap();
    let start = whole.find("[[key]]").unwrap();
    file.set_len(start as u64).unwrap();
    keys.look_again();
    assert!(bearer(&auth, &revoked).is_ok() && bearer(&auth, &kept).is_ok());
    fs::write(&path, &whole).unwrap();
    file.unlock().unwrap();
    revoke(&path, &id);
    keys.look_again();
    assert_eq!(bearer(&auth, &revoked), Err("revoked".to_owned()));
    assert!(bearer(&auth, &kept).is_ok());

    // A lock that is never released keeps no key valid. Taking it requires only read permission.
    let reader = fs::File::open(&path).unwrap();
    reader.lock().unwrap();
    fs::write(&path, "version = 1\n").unwrap();
    let looks = (1..10).take_while(|_| {
        keys.look_again();
        bearer(&auth, &kept).is_ok()
    });
    assert_eq!(looks.count(), 3);
}

fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

const SECRET: &[u8] = b"a secret of thirty-two bytes, or more";

fn shared() -> (Auth, impl Fn(&[u8]) -> Vec<u8>) {
    let folder = Folder::new();
    let mut arguments = arguments();
    arguments.jwt_secret = Some(folder.write("secret", [SECRET, b"\n"].concat()));
    arguments.jwt_algorithms = vec![Algorithm::HS256];
    arguments.jwt_issuer = Some("us".to_owned());
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    let sign = move |signed: &[u8]| hmac::sign(&key, signed).as_ref().to_vec();
    (Auth::load(&arguments, false).unwrap(), sign)
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}

#[test]
fn tokens_must_be_valid_now_and_for_this_server() {
    let (auth, sign) = shared();
    let header = json!({"alg": "HS256", "typ": "JWT"});
    let claims = json!({"sub": "alice", "aud": "hashfinder", "iss": "us", "exp": now() + 60.0});
    let verified = |header: &Value, claims: &Value| bearer(&auth, &token(header, claims, &sign));
    let alice = Ok(("jwt:alice".to_owned(), Role::User));
    assert_eq!(verified(&header, &claims), alice);
    let claims_with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        verified(&header, &claims)
    };
    for (name, value) in [
        ("aud", json!(["other", "hashfinder"])),
        // Clocks differ a little.
        ("exp", json!(now() - 20.0)),
        ("nbf", json!(now() + 20.0)),
        ("nbf", json!(0)),
        ("role", json!("operator")),
    ] {
        assert_eq!(claims_with(name, value.clone()), alice, "{name} {value}");
    }
    for (name, value, why) in [
        ("exp", json!(now() - 60.0), "expired"),
        ("exp", Value::Null, "missing or invalid exp claim"),
        ("exp", json!("9999999999"), "missing or invalid exp claim"),
        ("nbf", json!(now() + 60.0), "not valid yet"),
        ("nbf", json!("0"), "invalid nbf claim"),
        ("nbf", Value::Null, "invalid nbf claim"),
        ("aud", json!("other"), "wrong audience"),
        ("aud", json!(["hashfinder2"]), "wrong audience"),
        ("aud", json!({"hashfinder": 1}), "wrong audience"),
        ("aud", Value::Null, "wrong audience"),
        ("iss", json!("them"), "wrong issuer"),
        ("iss", Value::Null, "wrong issuer"),
        ("sub", Value::Null, "missing or invalid sub claim"),
        ("sub", json!(""), "missing or invalid sub claim"),
        ("sub", json!("a b"), "missing or invalid sub claim"),
        ("sub", json!("a\nb"), "missing or invalid sub claim"),
        (
            "sub",
            json!("x".repeat(256)),
            "missing or invalid sub claim",
        ),
    ] {
        assert_eq!(
            claims_with(name, value.clone()),
            Err(why.to_owned()),
            "{name} {value}"
        );
    }
    for (header, why) in [
        (json!({"alg": "none"}), "algorithm not allowed"),
        (json!({"alg": "HS512"}), "algorithm not allowed"),
        (json!({"alg": "hs256"}), "algorithm not allowed"),
        (
            json!({"alg": "HS256", "crit": ["b64"]}),
            "token with critical extensions (crit)",
        ),
        (json!({}), "malformed token"),
        (json!(["HS256"]), "malformed token"),
    ] {
        assert_eq!(verified(&header, &claims), Err(why.to_owned()), "{header}");
    }
    let good = token(&header, &claims, &sign);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (head, _) = signed.split_once('.').unwrap();
    for (bad, why) in [
        (format!("{signed}."), "invalid signature"),
        (format!("{signed}.AAAA"), "invalid signature"),
        (format!("{signed}.{signature}="), "malformed token"),
        (format!("{head}.e30.{signature}"), "invalid signature"),
        (
            format!("e30.{}.{signature}", signed.split_once('.').unwrap().1),
            "malformed token",
        ),
        ("..".to_owned(), "malformed token"),
    ] {
        assert_eq!(bearer(&auth, &bad), Err(why.to_owned()), "{bad}");
    }
}

/// Returns a public key for ES256, in PEM, and a function that signs with its private key.
fn pair() -> (String, impl Fn(&[u8]) -> Vec<u8>) {
    let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
    let mut der = vec![
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
    ];
    der.extend([
        0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ]);
    der.extend(pair.public_key().as_ref());
    let pem = spki::der::pem::encode_string("PUBLIC KEY", spki::der::pem::LineEnding::LF, &der);
    let sign = move |signed: &[u8]| pair.sign(&random, signed).unwrap().as_ref().to_vec();
    (pem.unwrap(), sign)
}

#[test]
fn a_public_key_is_not_accepted_as_a_secret() {
    let folder = Folder::new();
    let ((one, sign), (other, sign_other)) = (pair(), pair());
    let text = format!("# the old one\n{one}\n# the new one\n{other}\n# so far\n");
    let mut arguments = arguments();
    arguments.jwt_keys = Some(folder.write("keys.pem", &text));
    arguments.jwt_algorithms = vec![Algorithm::ES256];
    let auth = Auth::load(&arguments, false).unwrap();
    let claims = json!({"sub": "bob", "aud": "hashfinder", "exp": now() + 60.0});
    let es256 = json!({"alg": "ES256"});
    assert!(bearer(&auth, &token(&es256, &claims, &sign)).is_ok());
    assert!(bearer(&auth, &token(&es256, &claims, &sign_other)).is_ok());
    let stranger = token(&es256, &claims, pair().1);
    assert_eq!(
        bearer(&auth, &stranger),
        Err("invalid signature".to_owned())
    );
    for secret in [&one, &text] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let sign = |signed: &[u8]| hmac::sign(&key, signed).as_ref().to_vec();
        for alg in ["HS256", "ES256"] {
            assert!(bearer(&auth, &token(&json!({"alg": alg}), &claims, sign)).is_err());
        }
    }
}

#[test]
fn inconsistent_settings_are_rejected() {
    let folder = Folder::new();
    let (public, _) = pair();
    let secret = folder.write("secret", SECRET);
    let keys = folder.write("keys.pem", &public);
    let short = folder.write("short", "a secret");
    let no_pem = folder.write("no.pem", "no key\n");
    let private = folder.write("private.pem", "-----BEGIN PRIVATE KEY-----\n");
    let other = folder.write("other.pem", public.replace("PUBLIC", "CERTIFICATE"));
    let damaged = folder.write("damaged.pem", public.replace("MFkw", "MFkx"));
    let load = |change: &dyn Fn(&mut Settings)| {
        let mut arguments = arguments();
        change(&mut arguments);
        let loaded = Auth::load(&arguments, false);
        loaded.map(|_| ()).map_err(|error| format!("{error:#}"))
    };
    let with = |path: &Path, algorithms: &[Algorithm]| {
        let loaded = load(&|arguments| {
            let public = path.extension().is_some();
            let to = if public {
                &mut arguments.jwt_keys
            } else {
                &mut arguments.jwt_secret
            };
            *to = Some(path.to_owned());
            arguments.jwt_algorithms = algorithms.to_vec();
        });
        loaded.err().unwrap_or_default()
    };
    let (es, hs, rs) = (Algorithm::ES256, Algorithm::HS256, Algorithm::RS256);
    assert_eq!(with(&keys, &[es]), "");
    assert_eq!(with(&secret, &[hs]), "");
    for (path, algorithms, why) in [
        (&keys, &[][..], "fits no algorithm"),
        (&keys, &[hs], "fits no algorithm"),
        (&keys, &[rs], "fits no algorithm"),
        (&keys, &[es, rs], "no key for RS256"),
        (&keys, &[es, hs], "no key for HS256"),
        (&secret, &[], "tokens need jwt-algorithm"),
        (&secret, &[es], "no key for ES256"),
        (&short, &[hs], "it has 8 bytes"),
        (&no_pem, &[es], "no public key found"),
        (&private, &[es], "a private key"),
        (&other, &[es], "it is a CERTIFICATE KEY"),
        (&damaged, &[es], "it is damaged"),
        (&folder.0.join("none.pem"), &[es], "No such file"),
    ] {
        let error = with(path, algorithms);
        assert!(error.contains(why), "{path:?} {algorithms:?}: {error}");
    }
    let as_secret = folder.write("as-secret", &public);
    assert!(with(&as_secret, &[hs]).contains("not a shared secret"));
    let alone = load(&|_| {}).unwrap_err();
    assert!(alone.contains("set jwt-keys or jwt-secret"), "{alone}");
    let for_anybody = load(&|arguments| {
        arguments.jwt_secret = Some(secret.clone());
        arguments.jwt_algorithms = vec![hs];
        arguments.jwt_audience = None;
    });
    assert!(
        for_anybody
            .unwrap_err()
            .contains("tokens need jwt-audience")
    );
}

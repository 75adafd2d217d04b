//! Whatever the file, reading it doesn't panic, and every finding has its line.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::config::key::Role;
use crate::config::{Config, keys, parse};

const PIECES: &[&str] = &[
    "\n",
    "\n  ",
    "\n    ",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "\"",
    "'",
    "&x ",
    "*x",
    "<<: *x",
    "#",
    "---\n",
    "0",
    "-1",
    "1e9",
    "9223372036854775807",
    "true",
    "null",
    "~",
    "5s",
    "é",
    "\t",
    "kind",
    "modules",
    "edgeProxy",
    "enable",
    "listenPort",
    "edgeTunnel",
    "relayNodes",
    "0x2000",
    "https://",
];

const FILE: &str = "\
kubeAPIConfig:
  master: https://10.0.0.1:6443
  qps: 100
  metaServer:
    security:
      requireAuthorization: true
commonConfig:
  bridgeDeviceIP: 169.254.96.16
  admin: {address: \"127.0.0.1:20008\"}
modules:
  edgeProxy:
    enable: true
    socketMark: 0x2000
    dialTimeout: 1s500ms
  edgeTunnel:
    relayNodes:
    - nodeName: a
      advertiseAddress: [1.1.1.1]
  edgeCNI: {meshCIDRConfig: {cloudCIDR: [10.0.0.0/8]}}
";

fn findings_have_lines(text: &str) {
    let lines = text.matches(['\n', '\r']).count() + 1;
    let (findings, fails) = match parse(text, "f") {
        Ok(parsed) => (parsed.warnings, false),
        Err(errors) => (errors.findings, true),
    };
    assert!(!(fails && findings.is_empty()));
    for finding in findings {
        assert!((1..=lines + 1).contains(&finding.mark.line), "{finding}");
        assert!(!finding.message.is_empty());
    }
}

/// A scalar of any kind, as YAML.
fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        any::<bool>().prop_map(|b| b.to_string()),
        any::<String>().prop_map(|s| serde_json::Value::from(s).to_string()),
        "[0-9]{1,3}(ms|s|m|h)",
        "(http|https)://[a-z0-9.:\\[\\]@]{0,12}",
        any::<std::net::IpAddr>().prop_map(|a| format!("\"{a}\"")),
        any::<std::net::SocketAddr>().prop_map(|a| format!("\"{a}\"")),
        (0u32..32).prop_map(|bit| (1u32 << bit).to_string()),
        "/[a-z/]{0,8}",
        Just("[]".to_owned()),
        Just("{}".to_owned()),
    ]
}

/// The file that sets each key to its value.
fn file(values: &[(usize, String)]) -> String {
    let mut root = serde_json::Map::new();
    for (at, value) in values {
        let key = keys::all().nth(at % keys::all().count()).unwrap();
        let value = edgemesh_yaml::documents(value)
            .next()
            .map(Result::unwrap)
            .unwrap()
            .to_value();
        let mut section = &mut root;
        let mut names: Vec<_> = key.path.split('.').collect();
        let last = names.pop().unwrap();
        for name in names {
            let below = section.entry(name).or_insert_with(|| serde_json::json!({}));
            section = below.as_object_mut().unwrap();
        }
        section.insert(last.to_owned(), value);
    }
    serde_json::to_string_pretty(&root).unwrap()
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        findings_have_lines(&text);
    }

    #[test]
    fn damaged_files_never_panic(
        edits in vec((any::<prop::sample::Index>(), 0usize..8, proptest::sample::select(PIECES)), 1..6),
    ) {
        let mut text: Vec<char> = FILE.chars().collect();
        for (at, removed, piece) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + removed).min(text.len());
            text.splice(at..end, piece.chars());
        }
        findings_have_lines(&text.into_iter().collect::<String>());
    }

    #[test]
    fn any_value_of_any_key_is_accepted_or_refused_by_name(at: usize, value in scalar()) {
        prop_assume!(value != "null");
        let text = file(&[(at, value)]);
        findings_have_lines(&text);
        let path = keys::all().nth(at % keys::all().count()).unwrap().path;
        if let Err(errors) = parse(&text, "f") {
            // A value that is good alone can contradict the default of another key.
            prop_assert!(errors.findings.iter().all(|f| {
                f.key.starts_with(path) || ["dialTimeout", "address"].iter().any(|k| f.key.ends_with(k))
            }), "{}", errors);
        }
    }

    #[test]
    fn every_good_configuration_prints_as_itself(values in vec((any::<usize>(), scalar()), 0..8)) {
        let values: Vec<_> = values.into_iter().filter(|v| parse(&file(std::slice::from_ref(v)), "f").is_ok()).collect();
        let Ok(parsed) = parse(&file(&values), "f") else { return Ok(()) };
        let again = parse(&parsed.config.to_string(), "f");
        prop_assert_eq!(again.map(|p| p.config), Ok(parsed.config.clone()));
        let restart = Config::default().needs_restart(&parsed.config);
        let honoured = |path: &&str| {
            keys::find(path).is_some_and(|key| matches!(key.role, Role::Honoured { .. }))
        };
        prop_assert!(restart.iter().all(honoured));
    }
}

#[test]
fn the_undamaged_file_is_good() {
    assert!(parse(FILE, "f").is_ok());
}

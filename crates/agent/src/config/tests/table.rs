//! The table of keys itself, and the page made from it.

use std::collections::BTreeSet;
use std::path::Path;

use super::good;
use crate::config::key::Role;
use crate::config::reference::reference;
use crate::config::{Config, keys};

#[test]
fn no_key_is_listed_twice_or_is_a_section_as_well() {
    let paths: Vec<_> = keys::all().map(|key| key.path).collect();
    let unique: BTreeSet<_> = paths.iter().collect();
    assert_eq!(unique.len(), paths.len());
    for path in &paths {
        let section = format!("{path}.");
        assert!(
            !paths.iter().any(|other| other.starts_with(&section)),
            "{path}"
        );
    }
}

#[test]
fn every_default_is_a_value_that_its_key_accepts() {
    for key in keys::all() {
        let default = match &key.role {
            Role::Honoured { show, .. } => show(&Config::default()),
            Role::NotHonoured { default: "", .. } => continue,
            Role::NotHonoured { default, .. } => format!("'{default}'"),
        };
        // Quoted numbers and booleans would be text.
        let default = match serde_json::from_str(default.trim_matches('\'')) {
            Ok(serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => {
                default.trim_matches('\'').to_owned()
            }
            Ok(_) | Err(_) => default,
        };
        let mut text = String::new();
        let names: Vec<_> = key.path.split('.').collect();
        for (depth, name) in names.iter().enumerate() {
            text += &format!("{}{name}:\n", " ".repeat(depth));
        }
        let text = format!("{} {default}\n", text.trim_end());
        assert_eq!(good(&text).config, Config::default(), "{text}");
    }
}

#[test]
fn the_effective_configuration_can_be_read_again() {
    let config = Config::without_file();
    let text = config.to_string();
    assert_eq!(good(&text).config, config);
    assert!(good(&text).warnings.is_empty());
    assert!(
        text.starts_with("kubeAPIConfig:\n  master: \"\"\n"),
        "{text}"
    );
    assert!(
        text.contains("\n    iptables:\n      flavour: \"auto\"\n"),
        "{text}"
    );
}

#[test]
fn the_reference_page_is_what_the_table_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let page = reference().unwrap();
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &page).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == page,
        "docs/configuration.md is out of date; run `make bless`"
    );
}

//! The README's reference tables say what the program says.

use cni_shim::conf;
use cni_shim::error::Code;
use overlayd::core::config::KEYS;
use overlayd::core::forward::DropReason;

const README: &str = include_str!("../../README.md");

/// Fails with the whole table to paste, if the README does not hold exactly these rows in a row.
#[track_caller]
fn assert_table(head: &str, rows: &[String]) {
    let table = format!("{head}\n{}\n", rows.join("\n"));
    assert!(README.contains(&table), "README.md should hold this table:\n{table}");
}

#[test]
fn the_configuration_reference_is_the_table_of_keys() {
    let rows: Vec<String> = KEYS
        .iter()
        .map(|key| {
            format!(
                "| `{}` | `{}` | {} | {} |",
                key.name,
                key.value.replace('|', "\\|"),
                if key.default.is_empty() { "none" } else { key.default },
                key.help
            )
        })
        .collect();
    assert_table("| key | value | default | what it does |\n|---|---|---|---|", &rows);
}

#[test]
fn the_drop_reasons_are_all_explained() {
    let rows: Vec<String> = DropReason::ALL
        .iter()
        .map(|reason| format!("| `{}` | {} |", reason.name(), reason.meaning()))
        .collect();
    assert_table("| reason | what it means, and where to look |\n|---|---|", &rows);
}

#[test]
fn the_keys_of_the_network_configuration_are_all_explained() {
    let rows: Vec<String> = conf::KEYS
        .iter()
        .map(|key| format!("| `{}` | `{}` | {} | {} |", key.name, key.value, key.default, key.help))
        .collect();
    assert_table(
        "| key of the network configuration | value | default | what it does |\n|---|---|---|---|",
        &rows,
    );
}

#[test]
fn the_error_codes_of_the_plugin_are_all_explained() {
    let rows: Vec<String> =
        Code::ALL.iter().map(|code| format!("| {} | {} |", code.number(), code.meaning())).collect();
    assert_table("| code | what it means |\n|---|---|", &rows);
}

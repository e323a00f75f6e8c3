//! A service rehearses on its own engine, as the example shows it.

#[path = "../../examples/rehearsal.rs"]
#[allow(unreachable_pub, missing_docs)]
mod rehearsal_example;

use crate::bench::{Bench, MEASURED, alone};
use keyleash::{
    drill::{Scenario, Verdict},
    token::pkcs11::Pkcs11Token,
};
use std::time::Duration;

/// As the rehearsed service polls.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

#[test]
fn a_service_that_rehearses_a_revocation_on_its_own_engine_gets_a_verdict_for_each_promise() {
    alone(
        "rehearsal::a_service_that_rehearses_a_revocation_on_its_own_engine_gets_a_verdict_for_each_promise",
        rehearsed,
    );
}

async fn rehearsed(bench: Bench) {
    let open = async || {
        let mut settings = bench.settings();
        settings.call_timeout = CALL_TIMEOUT;
        Pkcs11Token::open(settings).await
    };
    let report = rehearsal_example::rehearse(open).await.unwrap();
    report.to_string().lines().for_each(|line| println!("{MEASURED}{line}"));
    assert_eq!(report.scenario(), Scenario::Revocation);
    // A machine that is busy makes it inconclusive, and nothing makes it fail.
    assert_ne!(report.verdict(), Verdict::Fail, "{report}");
    let measured = report.measured();
    assert!(measured.first_refusal_ms.is_some() && measured.all_back_ms.is_some(), "{measured:?}");
    assert!(measured.succeeded > 0 && measured.refused > 0, "{measured:?}");
    assert_eq!((measured.unverified_bytes, measured.accounts_missing, measured.keys_left), (Some(0), 0, Some(0)));
    for name in ["last-success", "wiped", "keys-left", "first-success", "all-back", "wrong-outcomes"] {
        assert!(report.promises().iter().any(|promise| promise.name == name), "{name}: {report}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["scenario"], &json["operator"]), (&"revocation".into(), &false.into()));
}

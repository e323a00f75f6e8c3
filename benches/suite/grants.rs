//! Opens by a caller under ten thousand grants, beside opens where there are none.

use crate::{
    Scale,
    common::{
        fleets::{Fleet, LookUps},
        pairs::Rounds,
        rig,
    },
    table::Table,
};
use keyleash::{
    Engine,
    access::{Actions, Grant, Operation, Operations, Pattern, Policy},
    clock::Clock,
    engine::PolicySource,
    name::{CallerId, GrantId},
};
use tokio::runtime::Runtime;

const GRANTS: u32 = 10_000;
/// As in the row of cold opens.
const TASKS: usize = 64;
/// Accounts of which some are looked up at random.
const LOOKED_UP: usize = 1_000;
/// Batches of look-ups of each side.
const BATCHES: usize = 2_000;
const KEK: &str = "granted";

/// Each for a caller of its own, by a name or its beginning, one KEK, and accounts by their beginning.
fn policy() -> Policy {
    let grant = |number: u32| Grant {
        id: GrantId::new(format!("{number}")).expect("an id"),
        callers: Pattern::new(if number.is_multiple_of(2) {
            format!("app-{number}")
        } else {
            format!("app-{number}-*")
        })
        .expect("a pattern"),
        keks: Pattern::new(KEK).expect("a pattern"),
        accounts: Pattern::new(if number == 0 { "*".to_owned() } else { format!("tenant-{number}-*") })
            .expect("a pattern"),
        actions: Actions::Operations(Operations::of(&[Operation::Unwrap, Operation::Seal, Operation::Open])),
    };
    Policy::new(Vec::new(), (0..GRANTS).map(grant).collect()).expect("a policy")
}

/// Two rows.
pub(crate) fn under_grants(runtime: &Runtime, scale: &Scale, table: &mut Table) {
    let token = runtime.block_on(rig::softhsm(1));
    let fleet = Fleet::new(token, Clock::default());
    let ids = runtime.block_on(fleet.create(KEK, 0..scale.cold_accounts));
    let policy = policy();
    let caller = CallerId::new("app-0").expect("a caller");
    let engine = |is_granted: bool| -> Engine {
        match is_granted {
            false => fleet.engine(),
            true => fleet.engine_under(PolicySource::Given(policy.clone())).caller(caller.clone()),
        }
    };
    let open = |is_granted: bool| {
        runtime.block_on(async {
            // What is not the open's own: the policy, which is worked out once.
            let engine = engine(is_granted);
            fleet.open(&engine, &ids, TASKS).await.ns / ids.len() as f64
        })
    };
    open(false);
    open(true);
    let mut ns = vec![Vec::new(); 2];
    for round in 0..scale.cold_rounds {
        let order = if round % 2 == 0 { [false, true] } else { [true, false] };
        for side in order {
            ns[usize::from(side)].push(open(side));
        }
    }
    table.put("grants", Rounds::from_ns(ns).ratio(1, 0), format!("{} accounts", ids.len()));

    let some = &ids[..LOOKED_UP.min(ids.len())];
    let engines = [false, true].map(|side| runtime.block_on(async { engine(side) }));
    let _handles = engines.each_ref().map(|engine| runtime.block_on(fleet.warm(engine, some)));
    let mut look_ups = LookUps::new(some);
    let mut ns = vec![Vec::new(); 2];
    for batch in 0..BATCHES {
        for side in [batch % 2, 1 - batch % 2] {
            let one = runtime.block_on(look_ups.batch_ns(&engines[side]));
            if batch >= BATCHES / 4 {
                ns[side].push(one / LookUps::BATCH as f64);
            }
        }
    }
    table.put("grants, look-up", Rounds::from_ns(ns).ratio(1, 0), format!("{} accounts", some.len()));
}

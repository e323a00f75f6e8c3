//! `grant add`, `remove`, `list`, `test`, and `grant role`.

use crate::{
    consent::Consent,
    exit::Failure,
    os_caller::os_caller,
    output::{Output, table},
    setup::{Setup, Store},
};
use clap::{Args, Subcommand};
use keyleash::{
    Error,
    access::{Actions, Grant as Granted, Operation, Operations, Pattern, Policy, Role as OwnRole, Scope},
    name::{AccountId, CallerId, GrantId, KekName, RoleName},
    store,
};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(crate) enum Grant {
    /// Give a grant. In force in every process of the store within about a second.
    #[command(after_help = "Example:\n  keyleash grant add 'web-*' --operations unwrap,seal,open --kek tenants")]
    Add(Add),
    /// Take a grant away. Handles that are open stop as well.
    Remove {
        /// Its id, as `grant list` shows it.
        id: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// List the grants of the store, those of the configuration, and the roles.
    List,
    /// Say whether a caller may do something, and by which grant. Ends with 0 when it may, with 11 when not.
    Test(Test),
    /// Roles: bundles of operations.
    #[command(subcommand)]
    Role(Role),
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Who: an id, the beginning of ids with a * behind it, or *.
    caller: String,
    #[command(flatten)]
    scope: Scoped,
    /// What: the operations of a role.
    #[arg(long, value_name = "ROLE", conflicts_with = "operations", required_unless_present = "operations")]
    role: Option<String>,
    /// What: these operations, with commas between them.
    #[arg(long, value_name = "OPERATIONS", value_delimiter = ',')]
    operations: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Scoped {
    /// With which KEKs: a name, the beginning of names with a *, or *.
    #[arg(long, value_name = "NAME", default_value = "*")]
    kek: String,
    /// With which accounts, likewise. What is done to a KEK itself takes a grant for all accounts.
    #[arg(long, value_name = "ID", default_value = "*")]
    account: String,
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Who.
    caller: String,
    /// Which operation.
    operation: String,
    /// With this KEK, or with this account under it.
    #[arg(long, value_name = "NAME")]
    kek: Option<String>,
    /// With this account; without --kek under the KEK that it is under.
    #[arg(long, value_name = "ID")]
    account: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// Make a role, or change what it is: the grants that are of it follow.
    #[command(
        after_help = "Example:\n  keyleash grant role add auditor --include reader --not unwrap,open --operations audit.read"
    )]
    Add {
        /// Its name.
        name: String,
        /// What it bundles, with commas between them.
        #[arg(long, value_name = "OPERATIONS", value_delimiter = ',')]
        operations: Vec<String>,
        /// Roles whose operations it has too.
        #[arg(long, value_name = "ROLES", value_delimiter = ',')]
        include: Vec<String>,
        /// What it does not have of those.
        #[arg(long, value_name = "OPERATIONS", value_delimiter = ',')]
        not: Vec<String>,
        #[command(flatten)]
        scope: Scoped,
    },
    /// Remove a role that no grant and no other role is of.
    Remove {
        /// Its name.
        name: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// List the roles, those that are built in too.
    List,
}

pub(crate) async fn run(command: Grant, setup: &Setup, output: Output) -> Result<(), Failure> {
    match command {
        Grant::Add(args) => add(args, setup, output).await,
        Grant::Remove { id, consent } => remove(&id, consent, setup, output).await,
        Grant::List => {
            let policy = setup.engine_without_token(Store::Read).await?.policy().await?;
            let own = setup.policy();
            let grants: Vec<_> = own.grants().iter().chain(policy.grants()).collect();
            let json = json!({
                "grants": grants.iter().map(|grant| grant_json(grant)).collect::<Vec<_>>(),
                "roles": own.roles().iter().chain(policy.roles()).map(role_json).collect::<Vec<_>>(),
            });
            let row = |grant: &&Granted| {
                vec![
                    grant.id.to_string(),
                    grant.callers.to_string(),
                    grant.keks.to_string(),
                    grant.accounts.to_string(),
                    actions(grant),
                ]
            };
            let heading = ["ID", "CALLER", "KEK", "ACCOUNT", "MAY"].map(String::from).into();
            let lines = match grants.is_empty() {
                true => "no grant: everybody may do everything\n".into(),
                false => table(heading, grants.iter().map(row)),
            };
            output.result(&json, &lines)
        }
        Grant::Test(args) => test(args, setup, output).await,
        Grant::Role(Role::Add { name, operations, include, not, scope }) => {
            let (keks, accounts) = scope.patterns()?;
            let role = OwnRole {
                name: RoleName::new(&name)?,
                operations: parsed(&operations)?,
                includes: include.iter().map(RoleName::new).collect::<Result<_, _>>()?,
                not: parsed(&not)?,
                keks,
                accounts,
            };
            setup.engine_without_token(Store::Existing).await?.set_role(role.clone()).await?;
            output.result(&role_json(&role), &format!("role {}: {}\n", role.name, role_words(&role)))
        }
        Grant::Role(Role::Remove { name, consent }) => {
            let (name, engine) = (RoleName::new(&name)?, setup.engine_without_token(Store::Existing).await?);
            let policy = engine.policy().await?;
            let role = policy.roles().iter().find(|role| role.name == name);
            let role =
                role.ok_or_else(|| Error::NotFound(format!("role {name}: `keyleash grant role list` shows them")))?;
            let what = format!("role {name} ({}) would be removed", role_words(role));
            let done = consent.given(&what, output).await?;
            if done {
                engine.remove_role(&name).await?;
            }
            let line = if done { format!("role {name}: removed\n") } else { what + "\n" };
            output.result(&json!({ "role": name.as_str(), "dry_run": !done }), &line)
        }
        Grant::Role(Role::List) => {
            let policy = setup.engine_without_token(Store::Read).await?.policy().await?;
            let own: Vec<_> = setup.policy().roles().iter().chain(policy.roles()).collect();
            let built_in = OwnRole::built_in().map(|(name, operations)| {
                let operations: Vec<_> = operations.iter().map(Operation::name).collect();
                json!({ "role": name, "operations": operations, "built_in": true })
            });
            let json = json!({ "roles": built_in.chain(own.iter().map(|role| role_json(role))).collect::<Vec<_>>() });
            let built_in = OwnRole::built_in().map(|(name, operations)| vec![name.to_owned(), operations.to_string()]);
            let rows = built_in.chain(own.iter().map(|role| vec![role.name.to_string(), role_words(role)]));
            output.result(&json, &table(["ROLE", "MAY"].map(String::from).into(), rows))
        }
    }
}

impl Scoped {
    fn patterns(&self) -> Result<(Pattern, Pattern), Error> {
        Ok((Pattern::new(&self.kek)?, Pattern::new(&self.account)?))
    }
}

fn parsed(operations: &[String]) -> Result<Operations, Error> {
    operations.iter().map(|name| Operation::parse(name.trim())).collect()
}

async fn add(args: Add, setup: &Setup, output: Output) -> Result<(), Failure> {
    let (keks, accounts) = args.scope.patterns()?;
    let actions = match &args.role {
        Some(role) => Actions::Role(RoleName::new(role)?),
        None => Actions::Operations(parsed(&args.operations)?),
    };
    let id = GrantId::new("new")?; // the store draws it
    let grant = Granted { id, callers: Pattern::new(&args.caller)?, keks, accounts, actions };
    let engine = setup.engine_without_token(Store::Existing).await?;
    let is_first = engine.policy().await?.grants().is_empty();
    let added = engine.add_grants(vec![grant.clone()]).await?;
    let Some(id) = added.into_iter().next() else { return Err(Error::Fatal("no grant was made".into()).into()) };
    if is_first {
        output.note("keyleash: from now on what is not granted is refused, in every process of this store");
    }
    let grant = Granted { id, ..grant };
    output.result(&grant_json(&grant), &format!("{}\n", words(&grant)))
}

async fn remove(id: &str, consent: Consent, setup: &Setup, output: Output) -> Result<(), Failure> {
    let id = GrantId::new(id)?;
    if setup.policy().grants().iter().any(|grant| grant.id == id) {
        return Err(Error::Invalid(format!("grant {id}: it stands in the configuration: take it out there")).into());
    }
    let engine = setup.engine_without_token(Store::Existing).await?;
    let policy = engine.policy().await?;
    let grant = policy.grants().iter().find(|grant| grant.id == id);
    // What an id names never changes: what is shown is what goes.
    let grant = grant.ok_or_else(|| Error::NotFound(format!("grant {id}: `keyleash grant list` shows them")))?;
    let done = consent.given(&format!("{}: would be taken away", words(grant)), output).await?;
    if done {
        engine.remove_grant(&id).await?;
    }
    let end = if done { "is taken away" } else { "would be taken away" };
    let mut json = grant_json(grant);
    if let Some(fields) = json.as_object_mut() {
        fields.insert("dry_run".into(), (!done).into());
    }
    output.result(&json, &format!("{}: {end}\n", words(grant)))
}

async fn test(args: Test, setup: &Setup, output: Output) -> Result<(), Failure> {
    let (caller, operation) = (CallerId::new(&args.caller)?, Operation::parse(&args.operation)?);
    let account = args.account.map(AccountId::new).transpose()?;
    let kek = args.kek.map(KekName::new).transpose()?;
    let store = setup.store(Store::Read).await?;
    if caller != os_caller()? {
        // What others may do is for those to know who may change it.
        setup.permit(&store, Operation::GrantWrite, None, None).await?;
    }
    let judge = setup.judge_for(store.clone(), caller.clone()).await?;
    judge.permit(operation, account.as_ref(), kek.as_ref()).await?;
    let of_store = store::load_policy(&*store).await?;
    let under = match (&kek, &account) {
        (None, Some(account)) => judge.kek_of(account).await?,
        _ => kek,
    };
    let on = Scope { kek: under.as_ref(), account: account.as_ref() };
    let policies: Vec<&Policy> = of_store.iter().chain([setup.policy()]).collect();
    let grant = policies.iter().find_map(|policy| policy.grant_for(&caller, operation, on));
    let why = grant.map_or_else(|| "there is no grant: everybody may do everything".into(), words);
    let json = json!({
        "caller": caller.as_str(), "operation": operation.name(), "allowed": true, "grant": grant.map(grant_json),
    });
    output.result(&json, &format!("caller {caller} may {operation}: {why}\n"))
}

fn actions(grant: &Granted) -> String {
    match &grant.actions {
        Actions::Operations(operations) => operations.to_string(),
        Actions::Role(role) => format!("role {role}"),
        _ => String::new(),
    }
}

fn words(grant: &Granted) -> String {
    format!("grant {}: caller {}, {}", grant.id, grant.callers, scope_words(grant))
}

/// With what, and what.
pub(crate) fn scope_words(grant: &Granted) -> String {
    format!("KEK {}, account {}: {}", grant.keks, grant.accounts, actions(grant))
}

pub(crate) fn role_words(role: &OwnRole) -> String {
    let mut words = vec![role.operations.to_string()];
    words.extend(role.includes.iter().map(|name| format!("role {name}")));
    if !role.not.is_empty() {
        words.push(format!("not {}", role.not));
    }
    for (what, pattern) in [("KEK", &role.keks), ("account", &role.accounts)] {
        if !pattern.is_all() {
            words.push(format!("{what} {pattern}"));
        }
    }
    words.retain(|word| !word.is_empty());
    words.join(", ")
}

fn names(operations: Operations) -> Vec<&'static str> {
    operations.iter().map(Operation::name).collect()
}

pub(crate) fn grant_json(grant: &Granted) -> Value {
    let (operations, role) = match &grant.actions {
        Actions::Operations(operations) => (Some(names(*operations)), None),
        Actions::Role(role) => (None, Some(role.as_str())),
        _ => (None, None),
    };
    json!({
        "id": grant.id.as_str(), "caller": grant.callers.to_string(), "kek": grant.keks.to_string(),
        "account": grant.accounts.to_string(), "operations": operations, "role": role,
    })
}

pub(crate) fn role_json(role: &OwnRole) -> Value {
    let includes: Vec<_> = role.includes.iter().map(RoleName::as_str).collect();
    json!({
        "role": role.name.as_str(), "operations": names(role.operations), "includes": includes, "not": names(role.not),
        "kek": role.keks.to_string(), "account": role.accounts.to_string(),
    })
}

//! What every call goes through before it does anything: whether its caller may, and, for one that changes something, the trail.
//!
//! There are two ways in. [`Engine::permit`] is for what reads. Whatever changes something is an [`Act`], and goes through
//! [`Engine::act`] or [`Engine::acting`]: refused without its grants, which the trail is told, and then without the line on the trail that
//! says that it was asked for, and who asked. How it ended is on the trail before the caller hears of it.

use super::Engine;
use crate::{
    access::Operation,
    account::Account,
    clock::Instant,
    error::{Error, Result},
    keyring::{
        Keyring, On,
        on_trail::{Line, asked_by, asked_by_blocking, asker},
    },
    name::{AccountId, KekVersion, TokenName, Whence},
    secret::fork,
    telemetry::trail::{Asker, Correlation, Deed, OfGrants, Outcome, Record, Subject, Why},
};
use std::{pin::Pin, sync::Arc};

/// Something that a caller has changed.
pub(crate) struct Act<'a> {
    deed: Deed,
    takes: Vec<(&'a [Operation], On<'a>)>,
    /// A line each; most acts have one.
    on: Vec<Subject>,
    /// See [`Act::taking_away`].
    takes_away: bool,
}

impl<'a> Act<'a> {
    /// A deed that takes these operations of what it is done to.
    pub(crate) fn new(deed: Deed, operations: &'a [Operation], on: On<'a>) -> Self {
        let (account, kek) = on.names();
        let line = Subject { account, kek, ..Subject::default() };
        Self { deed, takes: vec![(operations, on)], on: vec![line], takes_away: false }
    }

    /// It takes the use of something away, which can be given back, and nothing else: that waits for no trail, and is done whether there is
    /// a line of it or not. What destroys is not among it.
    pub(crate) fn taking_away(self) -> Self {
        self.taking_away_if(true)
    }

    /// As [`Act::taking_away`], where it does.
    pub(crate) fn taking_away_if(mut self, takes_away: bool) -> Self {
        self.takes_away = takes_away;
        self
    }

    /// And these of something else.
    pub(crate) fn and(mut self, operations: &'a [Operation], on: On<'a>) -> Self {
        self.takes.push((operations, on));
        self
    }

    /// Says more of what it is done to.
    pub(crate) fn with(mut self, tell: impl Fn(&mut Subject)) -> Self {
        self.on.iter_mut().for_each(tell);
        self
    }

    /// With a line for each of these.
    pub(super) fn each(self, parts: impl Iterator<Item = OfGrants>) -> Self {
        let on = parts.map(|part| Subject { grants: Some(part), ..Subject::default() }).collect();
        Self { on, ..self }
    }

    /// To a version of a KEK.
    pub(crate) fn version(self, kek: &KekVersion) -> Self {
        self.with(|on| on.kek_version = Some(kek.version))
    }

    /// To AEK versions of the account.
    pub(crate) fn aeks(self, aek_versions: &[u32]) -> Self {
        self.with(|on| on.aek_versions = aek_versions.to_vec())
    }

    /// In this token.
    pub(crate) fn token(self, token: &TokenName) -> Self {
        self.with(|on| on.token = Some(token.clone()))
    }
}

impl Engine {
    /// The same engine, for what comes from there: an address, a host. The trail keeps it; it decides nothing.
    #[must_use]
    pub fn from_where(&self, from: Whence) -> Self {
        let mut here = self.clone();
        here.who.from = Some(from);
        here
    }

    /// The same engine, for one request: all that is asked by it has this id on the trail, so that it can be found in a service's own log.
    /// What is asked without has an id of its own each time.
    #[must_use]
    pub fn correlation(&self, id: Correlation) -> Self {
        let mut here = self.clone();
        here.who.correlation = Some(id);
        here
    }

    /// The engine's own hand, which nobody is asked for: for what is done for a caller once [`Engine::permit`] has said that it may have
    /// the whole. Never given out, nor a handle that is opened by it.
    #[cfg(feature = "secrets")]
    pub(crate) fn own_hand(&self) -> Self {
        Self { own: Some(crate::access::Permit::of_engine(&self.keyring().access.force)), ..self.clone() }
    }

    /// Who asks by this call.
    pub(crate) fn asks(&self) -> Asker {
        // Of what is done on the way of a call: whose that is.
        asker().unwrap_or_else(|| self.who.asks())
    }

    /// Whether the caller may do all of these. For every call that reads something for somebody, here and in what is built on the engine.
    ///
    /// # Errors
    /// [`Error::Forbidden`], which says nothing of what there is; [`Error::Store`] where the policy, or the KEK that an account is under,
    /// cannot be read; [`Error::Trail`] where that withholds data.
    pub(crate) async fn permit(&self, operations: &[Operation], on: On<'_>) -> Result<()> {
        let permitted = self.may(operations, on).await;
        if let Err(error @ Error::Forbidden(_)) = &permitted {
            let (account, kek) = on.names();
            self.note_forbidden(self.asks(), None, Subject { account, kek, ..Subject::default() }, error);
        }
        permitted
    }

    /// As [`Engine::permit`], and tells nobody.
    pub(crate) async fn may(&self, operations: &[Operation], on: On<'_>) -> Result<()> {
        if self.own.is_some() {
            return Ok(());
        }
        if operations.iter().any(|operation| operation.is_of_data()) {
            self.keyring().access.force.withheld().map_or(Ok(()), Err)?;
        }
        self.is_granted(operations, on).await
    }

    /// As [`Engine::may`], for what takes keys away: that waits for no trail.
    pub(crate) async fn is_granted(&self, operations: &[Operation], on: On<'_>) -> Result<()> {
        if self.keyring().access.force.is_open() {
            return Ok(());
        }
        // At home: the store is asked, which a host may have no runtime for, or stand still over with the policy's lock in its hand.
        let (caller, operations, (account, kek)) = (self.who.caller.clone(), operations.to_vec(), on.names());
        self.at_home(|keyring| async move {
            keyring.permit(caller.as_ref(), &operations, On::of(account.as_ref(), kek.as_ref())).await
        })
        .await
    }

    fn note_forbidden(&self, by: Asker, asked: Option<Deed>, on: Subject, error: &Error) {
        if self.is_on_trail() {
            let outcome = Outcome::Failed(Why::of(error));
            let mut record = Record::new(self.keyring().clock.wall_unix_ms(), Deed::Forbidden, outcome, by);
            record.on = Subject { asked, ..on };
            self.keyring().note(record);
        }
    }

    /// True where there is a trail.
    pub(crate) fn is_on_trail(&self) -> bool {
        self.keyring().on_trail.is_kept()
    }

    /// Does something that changes something, at home.
    ///
    /// # Errors
    /// As `work`, and as [`Engine::acting`].
    pub(crate) fn act<'a, T, W>(
        &'a self,
        act: Act<'a>,
        work: impl FnOnce(Arc<Keyring>) -> W + 'a,
    ) -> impl Future<Output = Result<T>>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        self.acting(act, self.at_home(work), |_, _| {})
    }

    /// Does something that changes something. What it `made` is told of what was done.
    ///
    /// # Errors
    /// As `work`; [`Error::Forbidden`], as [`Engine::permit`]; [`Error::Trail`] where it cannot be written that it was asked for: nothing
    /// was done.
    pub(crate) fn acting<'a, T>(
        &'a self,
        act: Act<'a>,
        work: impl Future<Output = Result<T>> + 'a,
        made: impl Fn(&T, &mut Subject) + 'a,
    ) -> impl Future<Output = Result<T>> {
        // In a box: what is done is big, and would stand in the future of each of these.
        self.acting_each(act, Box::pin(work), move |done, _, on| made(done, on))
    }

    /// As [`Engine::acting`], with a line for each part of it. What it `made` is told of each, by its place.
    pub(super) async fn acting_each<T, W: Future<Output = Result<T>>>(
        &self,
        act: Act<'_>,
        work: Pin<Box<W>>,
        made: impl Fn(&T, usize, &mut Subject),
    ) -> Result<T> {
        let Some((by, lines)) = self.ask(act).await? else { return work.await };
        let outcome = asked_by(Some(by), work).await;
        let ended = |(n, line): (usize, Line)| line.ended(&outcome, |done, on| made(done, n, on));
        let lines: Vec<_> = lines.into_iter().enumerate().map(ended).collect();
        let written = self.at_home(|keyring| async move {
            keyring.write_ends(lines).await;
            Ok(())
        });
        let _ = written.await; // what is closed meanwhile has noted them
        outcome
    }

    /// What [`Engine::acting`] does before the work: for what goes on when this engine is gone, and ends its lines by itself. `None`
    /// without a trail.
    ///
    /// # Errors
    /// As [`Engine::acting`]: it is not to be begun.
    pub(crate) async fn ask(&self, act: Act<'_>) -> Result<Option<(Asker, Vec<Line>)>> {
        for (operations, on) in &act.takes {
            if let Err(error) = self.may(operations, *on).await {
                self.note_refused(act, &error);
                return Err(error);
            }
        }
        if !self.is_on_trail() {
            return Ok(None);
        }
        let (deed, on, by, takes_away) = (act.deed, act.on, self.asks(), act.takes_away);
        let asks = by.clone();
        let lines = self.at_home(|keyring| async move { keyring.ask_trail(deed, on, asks, takes_away).await }).await?;
        Ok(Some((by, lines)))
    }

    fn note_refused(&self, act: Act<'_>, error: &Error) {
        if fork::in_child() || !self.is_on_trail() {
            return;
        }
        let by = self.asks();
        for on in act.on {
            match error {
                Error::Closed => return,
                Error::Forbidden(_) => self.note_forbidden(by.clone(), Some(act.deed), on, error),
                _ => {
                    let (unix_ms, outcome) = (self.keyring().clock.wall_unix_ms(), Outcome::Failed(Why::of(error)));
                    self.keyring().note(Record { on, ..Record::new(unix_ms, act.deed, outcome, by.clone()) });
                }
            }
        }
    }

    /// Opens or reads data for somebody: nothing is changed, and nobody waits for the line, but with it nothing is given out whose line is
    /// lost where that is to be refused. What it `made` is told of what was done.
    ///
    /// # Errors
    /// As `work`; [`Error::Trail`].
    pub(crate) fn giving<'a, T>(
        &'a self,
        deed: Deed,
        on: Subject,
        work: impl Future<Output = Result<T>> + 'a,
        made: impl FnOnce(&T, &mut Subject) + 'a,
    ) -> impl Future<Output = Result<T>> {
        let work = Box::pin(work);
        async move {
            if !self.is_on_trail() || self.own.is_some() {
                return work.await;
            }
            if !self.keyring().has_room_on_trail() {
                self.at_home(Keyring::room_on_trail).await?;
            }
            let (by, began) = self.begins()?;
            let outcome = asked_by(Some(by.clone()), work).await;
            self.gives(deed, by, on, began, outcome, made)
        }
    }

    /// Before data is used for somebody; it is known by then who asks, and since when.
    fn begins(&self) -> Result<(Asker, Instant)> {
        fork::refuse_child()?;
        self.keyring().trail_serves()?;
        Ok((self.asks(), self.keyring().clock.now()))
    }

    /// What is given out of what was done: nothing where its line, or one on its way, is lost and that is to be refused.
    fn gives<T>(
        &self,
        deed: Deed,
        by: Asker,
        on: Subject,
        began: Instant,
        outcome: Result<T>,
        made: impl FnOnce(&T, &mut Subject),
    ) -> Result<T> {
        let noted = self.note_told(deed, by, on, began, &outcome, made);
        let done = outcome?;
        noted.and_then(|()| self.keyring().access.force.withheld().map_or(Ok(done), Err))
    }

    /// Takes something from somebody: nothing is changed, nobody waits for the trail, and it is told. What it `made` is told of what was
    /// done.
    pub(crate) fn telling<'a, T>(
        &'a self,
        deed: Deed,
        on: Subject,
        work: impl Future<Output = Result<T>> + 'a,
        made: impl FnOnce(&T, &mut Subject) + 'a,
    ) -> impl Future<Output = Result<T>> {
        let work = Box::pin(work);
        async move {
            if !self.is_on_trail() || self.own.is_some() {
                return work.await;
            }
            let (by, began) = (self.asks(), self.keyring().clock.now());
            let outcome = asked_by(Some(by.clone()), work).await;
            let _ = self.note_told(deed, by, on, began, &outcome, made); // it is taken all the same
            outcome
        }
    }

    fn note_told<T>(
        &self,
        deed: Deed,
        by: Asker,
        mut on: Subject,
        began: Instant,
        outcome: &Result<T>,
        made: impl FnOnce(&T, &mut Subject),
    ) -> Result<()> {
        match outcome {
            Err(_) if fork::in_child() => return Ok(()), // where a lock may be held for good
            // Of a trail that is full no more is told: who asks again and again leaves room for what happens else.
            Err(Error::Closed | Error::Trail(_)) => return Ok(()),
            Err(error @ Error::Forbidden(_)) => {
                self.note_forbidden(by, Some(deed), on, error);
                return Ok(());
            }
            Err(_) => {}
            Ok(done) => made(done, &mut on),
        }
        let keyring = self.keyring();
        let mut record = Record::new(keyring.clock.wall_unix_ms(), deed, Outcome::of(outcome), by);
        (record.on, record.took) = (on, Some(keyring.clock.now().since(began)));
        keyring.note_use(record)
    }

    /// As [`Engine::giving`], of the opening of an account.
    pub(super) async fn telling_open(
        &self,
        id: &AccountId,
        work: impl Future<Output = Result<Account>>,
    ) -> Result<Account> {
        let on = Subject { account: Some(id.clone()), ..Subject::default() };
        self.giving(Deed::AccountOpen, on, work, |account, on| on.kek = Some(account.kek())).await
    }

    /// As [`Engine::telling_open`], of one that blocks.
    pub(super) fn telling_open_blocking(
        &self,
        id: &AccountId,
        open: impl FnOnce() -> Result<Account>,
    ) -> Result<Account> {
        if !self.is_on_trail() || self.own.is_some() {
            return open();
        }
        let on = Subject { account: Some(id.clone()), ..Subject::default() };
        if !self.keyring().has_room_on_trail() {
            self.keyring().home.call_blocking(self.keyring().clone().room_on_trail())?;
        }
        let (by, began) = self.begins()?;
        let outcome = asked_by_blocking(Some(by.clone()), open);
        self.gives(Deed::AccountOpen, by, on, began, outcome, |account, on| on.kek = Some(account.kek()))
    }
}

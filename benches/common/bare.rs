//! The bare loop: threads that do nothing but C_DecryptInit and C_Decrypt on the wrapped AEKs that the engine unwraps, each on a
//! session of its own; or, for a re-wrap, C_EncryptInit and C_Encrypt and the unwrap of what came of it as well. What keyleash
//! costs beside the token is what it takes longer than this.
#![allow(unsafe_code)] // one raw call, as src/token/pkcs11/raw.rs makes it: cryptoki's own form calls C_Decrypt twice

use super::rig::{module, variable};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::Error,
    mechanism::{Mechanism, aead::GcmParams},
    object::{Attribute, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};
use cryptoki_sys::{CK_C_Decrypt, CKR_OK};
use keyleash::{
    clock::Clock,
    name::AccountId,
    store::{
        self, KeyStore,
        record::{AccountRecord, binding, context},
    },
    token::{Binding, KekId, Wrapped},
};
use std::{hint::black_box, ptr, sync::Barrier};

/// Room for an unwrapped AEK and what a token counts to it.
const PLAIN_BYTES: usize = 64;
const TAG_BITS: u64 = 128;

/// What one C_Decrypt gets.
pub(crate) struct Sample {
    wrapped: Wrapped,
    binding: Binding,
}

/// The wrapped AEKs of accounts, and the KEK that wraps them.
pub(crate) async fn samples(store: &dyn KeyStore, ids: &[AccountId]) -> (KekId, Vec<Sample>) {
    let (mut samples, mut kek) = (Vec::new(), None);
    for id in ids {
        let (record, _) = store::load_account(store, id).await.expect("a record").expect("an account");
        let AccountRecord { versions, .. } = record;
        let aek = versions.into_iter().next().expect("a wrapped AEK");
        let binding = binding(&context(&aek.kek, id, aek.aek_version));
        kek = Some(aek.kek_id);
        samples.push(Sample { wrapped: aek.wrapped, binding });
    }
    (kek.expect("an account"), samples)
}

/// The module, and a session on the token for each thread.
pub(crate) struct Bare {
    decrypt: CK_C_Decrypt,
    sessions: Vec<(Session, ObjectHandle)>,
    _library: cryptoki_sys::Pkcs11,
    _context: Pkcs11,
}

impl Bare {
    /// Opens `threads` sessions on the token of softhsm/with-token.
    pub(crate) fn open(kek: &KekId, threads: usize) -> Result<Self, Error> {
        let context = Pkcs11::new(module())?;
        // Whoever came first has initialised it.
        let _ = context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        let label = variable("KEYLEASH_TOKEN_LABEL");
        let slots = context.get_slots_with_initialized_token()?;
        let ours = |slot: &_| context.get_token_info(*slot).is_ok_and(|info| info.label().trim() == label);
        let slot = slots.into_iter().find(ours).expect("the token of softhsm/with-token");
        let pin = std::fs::read_to_string(variable("KEYLEASH_PIN_FILE")).expect("the PIN file");
        let mut sessions = Vec::new();
        for _ in 0..threads {
            let session = context.open_ro_session(slot)?;
            // The login is the process's: a second one says so.
            let _ = session.login(UserType::User, Some(&AuthPin::from(pin.trim())));
            let found = session.find_objects(&[Attribute::Id(kek.as_bytes().to_vec())])?;
            sessions.push((session, *found.first().expect("the KEK")));
        }
        // SAFETY: dlopen runs a library's initialisers; cryptoki has opened this very file in this process before.
        let library = unsafe { cryptoki_sys::Pkcs11::new(module()) }.map_err(Error::LibraryLoading)?;
        let get = *library.C_GetFunctionList.as_ref().map_err(|_| Error::NullFunctionPointer)?;
        let mut list = ptr::null_mut();
        // SAFETY: the module's C_GetFunctionList writes one pointer to where it is told.
        let code = unsafe { get(&raw mut list) };
        assert!(code == CKR_OK && !list.is_null(), "the module has no function list");
        // SAFETY: by the standard the pointer is to the module's function list, which is static; copied, because the struct is
        // packed on some targets.
        let functions = unsafe { ptr::read_unaligned(list) };
        Ok(Self { decrypt: functions.C_Decrypt, sessions, _library: library, _context: context })
    }

    /// Unwraps all samples, in equal shares on all threads, and gives the time from the first to the last, in nanoseconds.
    pub(crate) fn run(&mut self, samples: &[Sample]) -> f64 {
        self.on_all(samples, |decrypt, session, key, sample| {
            black_box(unwrap(decrypt, session, key, &sample.wrapped, &sample.binding));
        })
    }

    /// As [`Bare::run`], and wraps each and unwraps what came of it, as a re-wrap does.
    pub(crate) fn rewrap(&mut self, samples: &[Sample]) -> f64 {
        self.on_all(samples, |decrypt, session, key, sample| {
            let (aek, len) = unwrap(decrypt, session, key, &sample.wrapped, &sample.binding);
            let mut iv = sample.wrapped.iv.clone();
            let params = GcmParams::new(&mut iv, &sample.binding, TAG_BITS.into()).expect("GCM parameters");
            let bytes = session.encrypt(&Mechanism::AesGcm(params), key, &aek[..len]).expect("C_Encrypt");
            let wrapped = Wrapped { iv, bytes };
            let (back, _) = unwrap(decrypt, session, key, &wrapped, &sample.binding);
            assert_eq!(back, aek);
        })
    }

    fn on_all(
        &mut self,
        samples: &[Sample],
        work: impl Fn(CK_C_Decrypt, &mut Session, ObjectHandle, &Sample) + Sync,
    ) -> f64 {
        let share = samples.len().div_ceil(self.sessions.len());
        let (clock, start) = (Clock::default(), Barrier::new(self.sessions.len()));
        let decrypt = self.decrypt;
        let spans: Vec<_> = std::thread::scope(|scope| {
            let shares = self.sessions.iter_mut().zip(samples.chunks(share));
            let threads: Vec<_> = shares
                .map(|((session, key), samples)| {
                    let (clock, start, work) = (clock.clone(), &start, &work);
                    scope.spawn(move || {
                        // Not pinned, as the engine's workers are not.
                        start.wait();
                        let begun = clock.now();
                        samples.iter().for_each(|sample| work(decrypt, session, *key, sample));
                        (begun, clock.now())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread that unwraps")).collect()
        });
        let first = spans.iter().map(|(begun, _)| *begun).min().expect("a thread");
        let last = spans.iter().map(|(_, ended)| *ended).max().expect("a thread");
        last.since(first).as_nanos() as f64
    }
}

/// What C_Decrypt gave, and its length.
fn unwrap(
    decrypt: CK_C_Decrypt,
    session: &mut Session,
    key: ObjectHandle,
    wrapped: &Wrapped,
    binding: &Binding,
) -> ([u8; PLAIN_BYTES], usize) {
    let mut iv = wrapped.iv.clone();
    let params = GcmParams::new(&mut iv, binding, TAG_BITS.into()).expect("GCM parameters");
    session.decrypt_init(&Mechanism::AesGcm(params), key).expect("C_DecryptInit");
    let mut ciphertext = wrapped.bytes.clone();
    let mut plain = [0; PLAIN_BYTES];
    let mut len = PLAIN_BYTES as _;
    // SAFETY: the module's C_Decrypt, on a session that is open and that this thread alone uses (`&mut`); every pointer is to
    // memory of ours that lives through the call, with its length.
    let code = unsafe {
        decrypt.expect("C_Decrypt")(
            session.handle(),
            ciphertext.as_mut_ptr(),
            ciphertext.len() as _,
            plain.as_mut_ptr(),
            &raw mut len,
        )
    };
    assert_eq!(code, CKR_OK, "C_Decrypt");
    (plain, len as usize)
}

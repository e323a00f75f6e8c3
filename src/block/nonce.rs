//! Random nonces at the speed of the data path.
//!
//! Each thread has a ChaCha12 generator, seeded by the operating system, seeded anew after about 1 MiB of nonces and in
//! every forked child, so that no two processes draw the same nonces. A virtual machine that is resumed twice from one
//! snapshot of its memory can: the operating system knows of that only where the hypervisor tells it, and a user-space
//! generator never. Do not resume twice from one snapshot of a machine that seals.

use crate::{
    error::Result,
    secret::{fill_random, fork_generation},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::cell::RefCell;

/// Length of a nonce, in bytes.
pub const NONCE_BYTES: usize = 24;
/// A generator gives this many bytes before it is seeded anew.
const BYTES_PER_SEED: u32 = 1024 * 1024;
const NONCES_PER_SEED: u32 = BYTES_PER_SEED / NONCE_BYTES as u32;

/// The nonce of one block: the half that goes into the DEK, and the half that goes into GCM. Kept as words, which stay in
/// registers from the generator on: bytes that were just written one by one and are read as a whole make the processor wait.
/// A seal takes it by value and it cannot be copied, so it seals once.
pub(super) struct Nonce([u64; 3]);

impl Nonce {
    #[inline]
    pub(super) fn from_bytes(bytes: &[u8; NONCE_BYTES]) -> Self {
        let mut words = [0; 3];
        words.iter_mut().zip(bytes.as_chunks().0).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
        Self(words)
    }

    #[inline]
    pub(super) fn to_bytes(&self) -> [u8; NONCE_BYTES] {
        let mut bytes = [0; NONCE_BYTES];
        bytes.as_chunks_mut().0.iter_mut().zip(self.0).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
        bytes
    }

    /// The first half, as a number whose least byte comes first.
    #[inline]
    pub(super) fn kdf(&self) -> u128 {
        u128::from(self.0[0]) | u128::from(self.0[1] as u32) << 64
    }

    /// The second half, likewise.
    #[inline]
    pub(super) fn gcm(&self) -> u128 {
        u128::from(self.0[1] >> 32) | u128::from(self.0[2]) << 32
    }

    #[inline]
    pub(super) fn gcm_bytes(&self) -> [u8; 12] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = self.gcm().to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }
}

struct Source {
    rng: StdRng,
    /// The [`fork_generation`] in which it was seeded.
    generation: u64,
    left: u32,
}

thread_local! {
    static SOURCE: RefCell<Option<Source>> = const { RefCell::new(None) };
}

impl Nonce {
    /// Draws one.
    ///
    /// # Errors
    /// [`crate::Error::Fatal`] when the operating system has no randomness, or cannot tell a forked child from its parent.
    #[inline]
    pub(super) fn random() -> Result<Self> {
        let generation = fork_generation()?;
        let mut nonce = Self([0; 3]);
        let drawn = SOURCE.try_with(|source| {
            let mut source = source.try_borrow_mut().ok()?;
            Some(match &mut *source {
                Some(source) if source.generation == generation && source.left > 0 => {
                    source.draw(&mut nonce);
                    Ok(())
                }
                stale => Source::seed(generation).map(|seeded| stale.insert(seeded).draw(&mut nonce)),
            })
        });
        match drawn {
            Ok(Some(drawn)) => drawn?,
            // The thread is ending, or a signal handler seals in the midst of a draw.
            _ => {
                let mut bytes = [0; NONCE_BYTES];
                fill_random(&mut bytes)?;
                nonce = Self::from_bytes(&bytes);
            }
        }
        Ok(nonce)
    }
}

impl Source {
    #[cold]
    fn seed(generation: u64) -> Result<Self> {
        let mut seed = [0; 32];
        fill_random(&mut seed)?;
        Ok(Self { rng: StdRng::from_seed(seed), generation, left: NONCES_PER_SEED })
    }

    #[inline]
    fn draw(&mut self, nonce: &mut Nonce) {
        self.left = self.left.saturating_sub(1);
        nonce.0 = std::array::from_fn(|_| self.rng.next_u64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        collections::HashSet,
        io::{Read, Write},
        os::fd::FromRawFd,
    };

    fn draw() -> [u8; NONCE_BYTES] {
        Nonce::random().unwrap().to_bytes()
    }

    #[test]
    fn nonces_differ_within_and_between_threads_and_across_seeds() {
        let threads: Vec<_> = (0..3)
            .map(|_| std::thread::spawn(|| (0..2 * NONCES_PER_SEED).map(|_| draw()).collect::<Vec<_>>()))
            .collect();
        let nonces: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(nonces.iter().collect::<HashSet<_>>().len(), nonces.len());
        for half in [0..12, 12..24] {
            assert_eq!(nonces.iter().map(|nonce| &nonce[half.clone()]).collect::<HashSet<_>>().len(), nonces.len());
        }
    }

    #[test]
    fn an_ending_thread_still_draws() {
        struct Last(std::sync::mpsc::Sender<[u8; NONCE_BYTES]>);
        impl Drop for Last {
            fn drop(&mut self) {
                self.0.send(draw()).unwrap();
            }
        }
        thread_local!(static LAST: RefCell<Option<Last>> = const { RefCell::new(None) });
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            LAST.with(|last| *last.borrow_mut() = Some(Last(sender)));
            draw();
        })
        .join()
        .unwrap();
        assert_ne!(receiver.recv().unwrap(), [0; NONCE_BYTES]);
    }

    /// Forks; the child draws four nonces in `child` and sends them over.
    #[allow(unsafe_code)] // a test needs a real fork, which no safe interface gives
    fn draws_of_a_child(in_child: fn() -> [u8; 4 * NONCE_BYTES]) -> [u8; 4 * NONCE_BYTES] {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        // SAFETY: the child only draws, writes to the pipe and leaves by _exit, taking no lock that another thread may hold.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        // SAFETY: both descriptors are new, and each process owns its own.
        let [mut reader, mut writer] = ends.map(|end| unsafe { std::fs::File::from_raw_fd(end) });
        if child == 0 {
            let wrote = writer.write_all(&in_child()).is_ok();
            // SAFETY: ends the child without running the test harness's exit handlers.
            unsafe { libc::_exit(i32::from(!wrote)) };
        }
        drop(writer);
        let mut drawn = [0; 4 * NONCE_BYTES];
        reader.read_exact(&mut drawn).unwrap();
        let mut status = 0;
        // SAFETY: the child is ours and not yet waited for.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        drawn
    }

    fn four() -> [u8; 4 * NONCE_BYTES] {
        let mut drawn = [0; 4 * NONCE_BYTES];
        drawn.as_chunks_mut::<NONCE_BYTES>().0.iter_mut().for_each(|nonce| *nonce = draw());
        drawn
    }

    #[test]
    fn a_fork_never_repeats_a_nonce() {
        draw(); // the generator is seeded, and both processes inherit it
        let mut all = HashSet::new();
        for _ in 0..3 {
            all.extend(*draws_of_a_child(four).as_chunks::<NONCE_BYTES>().0.first_chunk::<4>().unwrap());
        }
        // A grandchild, too.
        let grandchild = draws_of_a_child(|| {
            draw();
            draws_of_a_child(four)
        });
        all.extend(*grandchild.as_chunks::<NONCE_BYTES>().0.first_chunk::<4>().unwrap());
        all.extend(*four().as_chunks::<NONCE_BYTES>().0.first_chunk::<4>().unwrap());
        assert_eq!(all.len(), 20);
    }
}

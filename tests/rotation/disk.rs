//! A disk for the redb store that fails, or dies and keeps no more than it was asked to sync.

use redb::StorageBackend;
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

/// What comes when so many more reads, writes and syncs were done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fuse {
    /// One of them fails.
    Fails(u64),
    /// It and all after it fail: the machine went down.
    Dies(u64),
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

#[derive(Debug, Default)]
struct Platter {
    live: Vec<u8>,
    /// As of the last sync …
    durable: Vec<u8>,
    /// … and what came after it.
    unsynced: Vec<Change>,
    fuse: Option<Fuse>,
    dead: bool,
}

/// Shared by all who have it open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    pub(crate) fn light(&self, fuse: Fuse) {
        self.platter().fuse.get_or_insert(fuse);
    }

    /// Another fuse has not burnt down.
    pub(crate) fn snuff(&self) {
        self.platter().fuse = None;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.platter().dead
    }

    /// The disk as the next boot finds it: what was synced, and of what was not, the writes that `kept` chooses.
    pub(crate) fn after_crash(&self, mut kept: impl FnMut() -> bool) -> Self {
        let platter = self.platter();
        let mut image = platter.durable.clone();
        for change in &platter.unsynced {
            match change {
                Change::Len(len) => image.resize(*len as usize, 0),
                Change::Write(offset, bytes) if kept() => write(&mut image, *offset, bytes),
                Change::Write(..) => {}
            }
        }
        Self(Arc::new(Mutex::new(Platter { live: image.clone(), durable: image, ..Platter::default() })))
    }

    fn touch(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = self.platter();
        platter.fuse = match platter.fuse {
            Some(Fuse::Dies(0)) => {
                platter.dead = true;
                None
            }
            Some(Fuse::Fails(0)) => {
                platter.fuse = None;
                return Err(io::Error::other("the disk failed once"));
            }
            Some(Fuse::Dies(left)) => Some(Fuse::Dies(left - 1)),
            Some(Fuse::Fails(left)) => Some(Fuse::Fails(left - 1)),
            None => None,
        };
        if platter.dead { Err(io::Error::other("the disk is dead")) } else { Ok(platter) }
    }
}

fn write(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset as usize..end].copy_from_slice(bytes);
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.touch()?.live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.touch()?;
        let found = platter.live.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.touch()?;
        platter.live.resize(len as usize, 0);
        platter.unsynced.push(Change::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.touch()?;
        platter.durable = platter.live.clone();
        platter.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.touch()?;
        write(&mut platter.live, offset, data);
        platter.unsynced.push(Change::Write(offset, data.to_vec()));
        Ok(())
    }
}

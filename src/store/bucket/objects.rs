//! What is asked of a bucket.

use crate::store::remote::Failure;
use async_trait::async_trait;

/// When a write is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On<'a> {
    /// Where no object is.
    Absent,
    /// Where the object has this ETag.
    Tag(&'a str),
    Always,
}

impl<'a> From<Option<&'a str>> for On<'a> {
    fn from(tag: Option<&'a str>) -> Self {
        tag.map_or(Self::Absent, Self::Tag)
    }
}

/// An object, and its ETag.
pub(super) type Tagged = (Vec<u8>, String);

/// Part of a listing, in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Names and sizes.
    pub(super) objects: Vec<(String, u64)>,
    pub(super) has_more: bool,
}

/// A bucket. Each call is one request, which is sent once.
#[async_trait]
pub(super) trait Objects: Send + Sync + 'static {
    /// `None` where the server said that there is none.
    async fn get(&self, name: &str) -> Result<Option<Tagged>, Failure>;

    /// Gives the ETag of what was written; `None` when it was not, because of `on`, or because of others that wrote at the same time.
    /// After [`Failure::Silent`] it may be done, also later.
    async fn put(&self, name: &str, on: On<'_>, bytes: Vec<u8>) -> Result<Option<String>, Failure>;

    /// One that is not there is no failure.
    async fn delete(&self, name: &str) -> Result<(), Failure>;

    /// Up to `limit` with this prefix, behind `after`.
    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Listing, Failure>;

    /// Some time, a random one, so that others get on.
    async fn pause(&self);
}

// The pages are Markdown, which a code host renders as they are. Each ends with where its links lead there, in files; `links.txt` says
// where they lead in rustdoc. It stands before each page, and of two definitions the first one counts (CommonMark 0.31, section 4.7).
#![doc = include_str!("links.txt")]
#![doc = include_str!("README.md")]

#[cfg(test)]
mod floors;
#[cfg(test)]
mod links;

macro_rules! pages {
    ($($page:ident)*) => {$(
        #[doc = include_str!("links.txt")]
        #[doc = include_str!(concat!(stringify!($page), ".md"))]
        pub mod $page {}
    )*};
}

pages! {
    architecture audit backups changes development drills format grants modules monitoring operations performance promises revoking rotation secrets
    settings
    stores threats tokens
}

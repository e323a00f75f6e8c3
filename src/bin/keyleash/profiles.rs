//! Wrap profiles on the command line.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use keyleash::token::Profile;

/// Parses the name of a wrap profile.
pub(crate) fn profiles() -> impl TypedValueParser<Value = Profile> {
    PossibleValuesParser::new(Profile::ALL.map(Profile::name)).try_map(|name| name.parse::<Profile>())
}

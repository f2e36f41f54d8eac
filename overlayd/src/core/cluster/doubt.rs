//! Which complete lists are too strange to be believed at once.
//!
//! A list takes Nodes away by not naming them. A server that was restored from nothing, a proxy that answers in its
//! place or a list cut short would take away the network of pods that live. Believing it a few seconds later costs
//! nothing.

use std::collections::BTreeSet;
use std::fmt;

/// Why a list is doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It names no Node, although we know some.
    Empty {
        /// Nodes known.
        known: usize,
    },
    /// It does not name our own Node, which we know.
    OwnMissing {
        /// Nodes known.
        known: usize,
    },
    /// Most of the Nodes that we know are not in it.
    MostMissing {
        /// Nodes known.
        known: usize,
        /// Those of them that are not named.
        missing: usize,
    },
}

impl Doubt {
    /// Whether a second list that says the same settles it. An empty one is never believed: our own Node is gone
    /// with the others, so there is nothing left to serve, and nothing to win.
    #[must_use]
    pub fn can_be_confirmed(self) -> bool {
        !matches!(self, Self::Empty { .. })
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty { known } => {
                write!(f, "the list of Nodes is empty, but {known} are known: it is not believed")
            }
            Self::OwnMissing { known } => write!(
                f,
                "the list of Nodes lacks our own, with {known} known: it is asked for again before it is believed"
            ),
            Self::MostMissing { known, missing } => write!(
                f,
                "the list of Nodes lacks {missing} of the {known} known: it is asked for again before it is believed"
            ),
        }
    }
}

/// Holds a complete list against the names that are known. `own` is our own.
#[must_use]
pub fn doubt(own: &str, known: &BTreeSet<String>, listed: &BTreeSet<&str>) -> Option<Doubt> {
    let count = known.len();
    let missing = known.iter().filter(|name| !listed.contains(name.as_str())).count();
    if count > 0 && listed.is_empty() {
        Some(Doubt::Empty { known: count })
    } else if known.contains(own) && !listed.contains(own) {
        Some(Doubt::OwnMissing { known: count })
    } else if count > 2 && missing * 2 > count {
        Some(Doubt::MostMissing { known: count, missing })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(known: &str, listed: &str) -> Option<Doubt> {
        let known = known.split_whitespace().map(str::to_owned).collect();
        doubt("own", &known, &listed.split_whitespace().collect())
    }

    #[test]
    fn ordinary_lists_are_believed() {
        assert_eq!(judge("", ""), None);
        assert_eq!(judge("", "a b"), None);
        assert_eq!(judge("own a b", "own a b"), None);
        assert_eq!(judge("own a b c", "own a"), None);
        assert_eq!(judge("own a", "own"), None);
        assert_eq!(judge("a b", "a"), None, "our own Node was not there before either");
    }

    #[test]
    fn strange_lists_are_doubted() {
        assert_eq!(judge("own a", ""), Some(Doubt::Empty { known: 2 }));
        assert_eq!(judge("own a", "a"), Some(Doubt::OwnMissing { known: 2 }));
        assert_eq!(judge("own a b c", "own"), Some(Doubt::MostMissing { known: 4, missing: 3 }));
        assert_eq!(judge("own a b c", "own x y z"), Some(Doubt::MostMissing { known: 4, missing: 3 }));
        assert!(!Doubt::Empty { known: 2 }.can_be_confirmed());
    }
}

//! What could not be kept on the way from one filesystem to another, by class.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::path::show;

/// Paths of a class that are listed; the others are counted.
pub const LISTED_MAX: usize = 100;

/// Makes the classes from one line each: word, bit of the digest, whether it can be left out of a
/// digest, and the sentence.
macro_rules! classes {
    ($($variant:ident = $word:literal, bit $bit:literal, $sentence:literal;)*) => {
        /// A kind of thing that a clone can fail to keep.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum FidelityClass {
            $(#[doc = $sentence] #[serde(rename = $word)] $variant,)*
        }

        impl FidelityClass {
            /// Every class.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The class in one word, as in `--accept`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The class in a sentence.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }

            const fn bit(self) -> u32 {
                match self { $(Self::$variant => 1 << $bit,)* }
            }
        }
    };
}

classes! {
    Ownership = "ownership", bit 0, "owner, group, and the setuid and setgid bits that depend on them";
    Modes = "modes", bit 1, "permission bits";
    Times = "times", bit 2, "times of access and modification";
    Xattrs = "xattrs", bit 3, "extended attributes, file capabilities among them";
    Acls = "acls", bit 4, "POSIX access control lists";
    Labels = "labels", bit 5, "SELinux labels";
    Devices = "devices", bit 6, "character and block devices";
    Unreadable = "unreadable", bit 7, "files and directories that the source agent may not read";
    Mounts = "mounts", bit 8, "directories of the source on which another filesystem is mounted";
}

impl fmt::Display for FidelityClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Some classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<FidelityClass>", into = "Vec<FidelityClass>")]
pub struct ClassSet(u32);

impl ClassSet {
    /// No class.
    pub const NONE: Self = Self(0);

    /// Whether `class` is one of them.
    #[must_use]
    pub const fn contains(self, class: FidelityClass) -> bool {
        self.0 & class.bit() != 0
    }

    /// These and those of `other`.
    #[must_use]
    pub const fn with_all(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bits, for a digest.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The classes in order.
    pub fn iter(self) -> impl Iterator<Item = FidelityClass> {
        let all = FidelityClass::ALL.iter().copied();
        all.filter(move |class| self.contains(*class))
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<FidelityClass> for ClassSet {
    fn from_iter<I: IntoIterator<Item = FidelityClass>>(classes: I) -> Self {
        Self(
            classes
                .into_iter()
                .fold(0, |bits, class| bits | class.bit()),
        )
    }
}

impl From<Vec<FidelityClass>> for ClassSet {
    fn from(classes: Vec<FidelityClass>) -> Self {
        classes.into_iter().collect()
    }
}

impl From<ClassSet> for Vec<FidelityClass> {
    fn from(classes: ClassSet) -> Self {
        classes.iter().collect()
    }
}

/// What was lost of one class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// How many entries.
    pub count: u64,
    /// The first of them.
    #[serde(default)]
    pub paths: Vec<String>,
}

impl Loss {
    /// Counts an entry.
    pub fn note(&mut self, path: &[u8]) {
        self.count = self.count.saturating_add(1);
        if self.paths.len() < LISTED_MAX {
            self.paths.push(show(path));
        }
    }

    /// Adds what somebody else counted.
    pub fn add(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        let room = LISTED_MAX.saturating_sub(self.paths.len());
        self.paths.extend(other.paths.iter().take(room).cloned());
    }
}

/// What was lost, by class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FidelityReport(BTreeMap<FidelityClass, Loss>);

impl FidelityReport {
    /// The entry at `path` lost what belongs to `class`.
    pub fn note(&mut self, class: FidelityClass, path: &[u8]) {
        self.0.entry(class).or_default().note(path);
    }

    /// Adds what somebody else lost.
    pub fn add(&mut self, other: &Self) {
        for (class, loss) in &other.0 {
            self.0.entry(*class).or_default().add(loss);
        }
    }

    /// What was lost, in the order of the classes.
    pub fn losses(&self) -> impl Iterator<Item = (FidelityClass, &Loss)> {
        self.0.iter().map(|(class, loss)| (*class, loss))
    }

    /// Whether nothing was lost.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was lost and is not among `accepted`, in words; `None` when there is nothing.
    #[must_use]
    pub fn complaint(&self, accepted: ClassSet) -> Option<String> {
        const SHOWN_MAX: usize = 10;
        let mut text = String::new();
        for (class, loss) in self.losses() {
            if accepted.contains(class) {
                continue;
            }
            if !text.is_empty() {
                text.push_str("; ");
            }
            let count = loss.count;
            text.push_str(&format!("{class} ({}) of {count}: ", class.sentence()));
            let shown = loss.paths.iter().take(SHOWN_MAX);
            text.push_str(&shown.cloned().collect::<Vec<_>>().join(", "));
            if loss.count > SHOWN_MAX as u64 {
                text.push_str(" and more");
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// The report without its paths.
    #[must_use]
    pub fn counts_only(&self) -> Self {
        let count = |loss: &Loss| Loss {
            count: loss.count,
            paths: Vec::new(),
        };
        let classes = self.0.iter().map(|(class, loss)| (*class, count(loss)));
        Self(classes.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_the_same_everywhere() {
        for class in FidelityClass::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), class.label());
        }
        let bits: Vec<_> = FidelityClass::ALL.iter().map(|class| class.bit()).collect();
        assert_eq!(
            bits,
            [1, 2, 4, 8, 16, 32, 64, 128, 256],
            "digests hold them"
        );
    }

    #[test]
    fn losses_are_all_counted_and_some_are_listed() {
        let mut report = FidelityReport::default();
        for _ in 0..250 {
            report.note(FidelityClass::Xattrs, b"a\n");
        }
        let mut sum = report.clone();
        sum.add(&report);
        let (class, loss) = sum.losses().next().unwrap();
        assert_eq!(
            (class, loss.count, loss.paths.len()),
            (FidelityClass::Xattrs, 500, 100)
        );
        assert!(
            sum.complaint(ClassSet::NONE)
                .unwrap()
                .contains("of 500: a\\n, ")
        );
        let accepted = ClassSet::from_iter([FidelityClass::Xattrs]);
        assert_eq!(sum.complaint(accepted), None);
    }
}

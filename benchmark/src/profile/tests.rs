use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn any_profile() -> impl Strategy<Value = Profile> {
    prop_oneof![
        Just(Profile::Random),
        Just(Profile::Vm),
        Just(Profile::Database),
        Just(Profile::Text),
        (0.0..=1.0).prop_map(Profile::Sparse),
    ]
}

/// The first `count` blocks.
fn blocks(profile: Profile, seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0xa5; count * BLOCK_LEN];
    Generator::new(profile, seed).fill(0, &mut bytes);
    bytes
}

/// How many times smaller a fast compressor makes it.
fn ratio(bytes: &[u8]) -> f64 {
    let packed = snap::raw::Encoder::new().compress_vec(bytes).unwrap();
    bytes.len() as f64 / packed.len() as f64
}

/// The parts of blocks that are zero, and that came before.
fn zero_and_repeated(bytes: &[u8]) -> (f64, f64) {
    let (mut zeros, mut repeated, mut seen) = (0, 0, HashSet::new());
    for block in bytes.chunks(BLOCK_LEN) {
        if block.iter().all(|byte| *byte == 0) {
            zeros += 1;
        } else if !seen.insert(block) {
            repeated += 1;
        }
    }
    let count = (bytes.len() / BLOCK_LEN) as f64;
    (f64::from(zeros) / count, f64::from(repeated) / count)
}

proptest! {
    #[test]
    fn any_part_is_the_same_whoever_makes_it_when(
        profile in any_profile(), seed: u64, first in 0..u64::MAX / 2, skip in 0..4_usize, tail in 1..BLOCK_LEN,
    ) {
        let generator = Generator::new(profile, seed);
        let mut whole = vec![0xff; 6 * BLOCK_LEN];
        generator.fill(first, &mut whole);
        let mut part = vec![0; BLOCK_LEN + tail];
        generator.fill(first + skip as u64, &mut part);
        let start = skip * BLOCK_LEN;
        // A block that is cut short is a page of another size in a database.
        let len = match profile { Profile::Database => BLOCK_LEN, _ => part.len() };
        prop_assert_eq!(&whole[start..start + len], &part[..len]);
    }

    #[test]
    fn the_right_part_of_any_volume_is_data(part in 0.0..=1.0_f64, islands in 1..5000_u64) {
        let generator = Generator::new(Profile::Sparse(part), 0);
        let data = (0..islands).filter(|island| generator.is_data(*island)).count();
        prop_assert!((data as f64 - part * islands as f64).abs() <= 1.0);
    }

    #[test]
    fn a_profile_survives_its_own_text(profile in any_profile()) {
        prop_assert_eq!(profile.to_string().parse(), Ok(profile));
    }

    #[test]
    fn no_text_panics(text: String) {
        let _either = text.parse::<Profile>();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]

    #[test]
    fn data_is_like_its_profile(seed: u64) {
        let random = blocks(Profile::Random, seed, 1000);
        prop_assert!(ratio(&random) < 1.01);
        prop_assert_eq!(zero_and_repeated(&random), (0.0, 0.0));

        let text = blocks(Profile::Text, seed, 1000);
        prop_assert!((1.5..4.0).contains(&ratio(&text)), "text {}", ratio(&text));
        prop_assert_eq!(zero_and_repeated(&text), (0.0, 0.0));

        let database = blocks(Profile::Database, seed, 1000);
        prop_assert!((1.5..4.0).contains(&ratio(&database)), "database {}", ratio(&database));
        let (zeros, repeated) = zero_and_repeated(&database);
        prop_assert!((0.02..0.08).contains(&zeros) && repeated == 0.0, "{} {}", zeros, repeated);

        let vm = blocks(Profile::Vm, seed, 5000);
        prop_assert!((1.2..2.0).contains(&ratio(&vm)), "vm {}", ratio(&vm));
        let (zeros, repeated) = zero_and_repeated(&vm);
        prop_assert!((0.04..0.18).contains(&zeros), "{}", zeros);
        // A tenth of the rest, but for the first time that each of them comes.
        prop_assert!((0.03..0.13).contains(&repeated), "{}", repeated);
    }

    #[test]
    fn another_seed_makes_other_data(seed: u64, number in 0..1000_u64) {
        for profile in [Profile::Random, Profile::Text] {
            let make = |seed| {
                let mut block = vec![0; BLOCK_LEN];
                Generator::new(profile, seed).fill(number, &mut block);
                block
            };
            prop_assert_ne!(make(seed), make(seed.wrapping_add(1)));
        }
    }
}

#[test]
fn what_is_no_profile_is_refused() {
    for text in [
        "",
        "sparse",
        "sparse=",
        "sparse=2",
        "sparse=-0.1",
        "sparse=NaN",
        "Random",
    ] {
        assert!(text.parse::<Profile>().is_err(), "{text}");
    }
}

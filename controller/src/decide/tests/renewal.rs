//! When credentials are made and renewed.

use super::*;

/// Has the credentials end at this second.
fn expire(world: &mut World, seconds: i64) {
    let expiry = at(seconds).as_second().to_string();
    for belonging in &mut world.belongings {
        let annotation = (names::EXPIRY_ANNOTATION.to_owned(), expiry.clone());
        belonging.annotations.extend([annotation]);
    }
}

#[test]
fn credentials_are_renewed_before_they_end() {
    let check = |hours: i64, expected: &[Step]| {
        let mut world = under_way(&json!({}));
        world.pods = vec![
            pod(&world, End::Target, &json!({})),
            pod(&world, End::Source, &json!({})),
        ];
        expire(&mut world, hours * 3600);
        assert_eq!(decide(&world).steps, expected, "{hours} h");
    };
    check(12, &[]);
    check(5, &[]);
    check(3, &[Step::Mint]);
    check(-1, &[Step::Mint]);
}

#[test]
fn no_agent_starts_with_credentials_that_end_soon() {
    let short = |steps: &[String]| {
        steps
            .iter()
            .map(|step| step.replace("home/volferry-UID-", ""))
            .collect::<Vec<_>>()
    };
    // A clone that was suspended over a weekend.
    let mut world = under_way(&json!({}));
    expire(&mut world, -1);
    assert_eq!(
        short(&decide_in(&mut world).0),
        ["Mint", "apply pod target"]
    );

    // A target that could not start for long.
    let waiting = json!({"status": {"phase": "Pending", "containerStatuses": [{"ready": false,
        "restartCount": 0, "image": "", "imageID": "", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}});
    world.pods = vec![pod(&world, End::Target, &waiting)];
    assert_eq!(short(&decide_in(&mut world).0), ["Mint"]);

    // A source shows nothing that its target may not have seen yet.
    let created = json!({"metadata": {"creationTimestamp": at(0).to_string()}});
    world.pods = vec![pod(&world, End::Target, &created)];
    assert_eq!(short(&decide_in(&mut world).0), ["Mint"]);
    let validity = i64::try_from(credentials::VALIDITY.as_secs()).unwrap();
    expire(&mut world, validity + 60);
    for (now, expected) in [(61, None), (179, None), (181, Some("apply pod source"))] {
        world.now = at(now);
        assert_eq!(
            short(&decide_in(&mut world).0),
            Vec::from_iter(expected),
            "{now}"
        );
    }
    // One that was made together with its credentials has them.
    expire(&mut world, validity + 1);
    world.now = at(2);
    assert_eq!(short(&decide_in(&mut world).0), ["apply pod source"]);
}

#[test]
fn what_a_source_needs_is_made_again_before_its_pod() {
    let mut world = under_way(&json!({}));
    world.pods = vec![pod(&world, End::Target, &json!({}))];
    world
        .belongings
        .retain(|belonging| belonging.name.ends_with("target"));
    let expected = ["Mint", "apply network policy home/volferry-UID-source"];
    assert_eq!(decide_in(&mut world).0, expected);
    world.belongings = provided(&world);
    assert_eq!(
        decide_in(&mut world).0,
        ["apply pod home/volferry-UID-source"]
    );
}

#[test]
fn credentials_of_two_mintings_are_made_again() {
    let check = |mintings: [&str; 2], expected: bool| {
        let mut world = under_way(&json!({}));
        target_runs(&mut world);
        let secrets = world
            .belongings
            .iter_mut()
            .filter(|it| it.kind == Kind::Secret);
        for (secret, minting) in secrets.zip(mintings) {
            let annotation = (names::MINTING_ANNOTATION.to_owned(), minting.to_owned());
            secret.annotations.extend([annotation]);
        }
        let (steps, _) = decide_in(&mut world);
        assert_eq!(
            steps.contains(&"Mint".to_owned()),
            expected,
            "{mintings:?}: {steps:?}"
        );
        // The source comes when the target has seen them.
        let has_source = steps.iter().any(|step| step.contains("pod "));
        assert_eq!(has_source, !expected, "{mintings:?}: {steps:?}");
    };
    check(["a", "a"], false);
    check(["a", "b"], true);
}

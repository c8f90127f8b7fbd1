//! socat with OpenSSL: a pipe with TLS in it, the least that one could write by hand. It knows
//! nothing of holes and sends them as zeros.

use super::{Job, Peer, never};
use crate::error::Error;
use crate::pki::Credentials;
use crate::port;
use crate::process::Group;

/// Its TLS library hands over 16 KiB at a time, whatever the block size.
pub(crate) const PEER: Peer = Peer {
    name: "socat",
    programs: &["socat"],
    version_flag: "-V",
    how: "socat -u -b 1048576 over OPENSSL, through the page cache",
    refusal: never,
    run,
};

fn run(job: &Job<'_>, group: &mut Group) -> Result<(), Error> {
    let port = port::free()?;
    let mut server = job.tools.command("socat");
    server.args(["-u", "-b", "1048576"]);
    let credentials = options(&job.pki.server);
    server.arg(format!(
        "OPENSSL-LISTEN:{port},bind=127.0.0.1,{credentials}"
    ));
    server.arg(format!("OPEN:{}", job.stage.target.display()));
    let server = group.serve(server, port)?;

    let mut client = job.tools.command("socat");
    client.args(["-u", "-b", "1048576"]);
    client.arg(format!("OPEN:{},rdonly", job.stage.source.display()));
    let credentials = options(&job.pki.client);
    client.arg(format!(
        "OPENSSL:127.0.0.1:{port},commonname=localhost,{credentials}"
    ));
    let client = group.start(client)?;
    group.wait(client)?;
    group.wait(server)
}

fn options(credentials: &Credentials) -> String {
    format!(
        "cert={},key={},cafile={},verify=1",
        credentials.certificate.display(),
        credentials.key.display(),
        credentials.authority.display()
    )
}

//! Work that blocks, on a thread of its own, for which a session waits beside all else.

use tokio::sync::oneshot;
use volferry_agent::cpu::CpuMeter;
use volferry_protocol::failure::Failure;

/// A piece of work, or none.
#[derive(Debug)]
pub(crate) struct Work<T>(Option<oneshot::Receiver<T>>);

impl<T> Default for Work<T> {
    /// None.
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Work<T> {
    /// Work whose end is told on `done`.
    pub(crate) const fn told_on(done: oneshot::Receiver<T>) -> Self {
        Self(Some(done))
    }

    pub(crate) const fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// Waits until what is under way is done, and for ever if nothing is. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// When its thread died.
    pub(crate) async fn done(&mut self) -> Result<T, Failure> {
        let Some(done) = &mut self.0 else {
            return std::future::pending().await;
        };
        let result = done.await;
        self.0 = None;
        result.map_err(|_died| Failure::internal("a thread died"))
    }

    /// Waits until what is under way is done, if anything is.
    ///
    /// # Errors
    /// When its thread died.
    pub(crate) async fn finish(&mut self) -> Result<Option<T>, Failure> {
        match self.is_under_way() {
            true => self.done().await.map(Some),
            false => Ok(None),
        }
    }
}

impl<T: Send + 'static> Work<T> {
    /// Begins `work` on a thread called `name`.
    ///
    /// # Errors
    /// When it can't be started.
    pub(crate) fn begin(
        &mut self,
        cpu: &CpuMeter,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(), Failure> {
        let (sender, done) = oneshot::channel();
        let _told_by_channel = cpu.spawn(name, move || {
            let _nobody_waits = sender.send(work());
        })?;
        self.0 = Some(done);
        Ok(())
    }
}

//! Objects by their types, over any store.

use std::time::Duration;

use ankole_api::object::{Object, ResourceVersion, Spec};

use crate::{Precondition, Raw, Selector, Store, StoreError};

/// A change that others come before is tried so often; then it is a conflict.
const ATTEMPTS_MAX: u32 = 40;
const PAUSE_MAX: Duration = Duration::from_millis(256);

/// All of a kind that were asked for, by name.
#[derive(Clone, Debug)]
pub struct Listed<S: Spec> {
    /// Where a watch goes on.
    pub version: ResourceVersion,
    /// Each for itself: one that can't be read, as [`StoreError::Unreadable`], hides no other.
    pub objects: Vec<Result<Object<S>, StoreError>>,
}

impl dyn Store + '_ {
    pub async fn find<S: Spec>(&self, name: &str) -> Result<Option<Object<S>>, StoreError> {
        self.get_raw(S::KIND, name).await?.map(|raw| parse(&raw)).transpose()
    }

    pub async fn get<S: Spec>(&self, name: &str) -> Result<Object<S>, StoreError> {
        let not_found = || StoreError::NotFound { kind: S::KIND, name: name.into() };
        self.find(name).await?.ok_or_else(not_found)
    }

    pub async fn list<S: Spec>(&self, selector: &Selector) -> Result<Listed<S>, StoreError> {
        let list = self.list_raw(S::KIND, selector).await?;
        let parsed = list.objects.iter().map(|raw| (raw.name().to_owned(), parse(raw)));
        let unreadable = list.unreadable.into_iter().map(|it| {
            let error =
                StoreError::Unreadable { kind: S::KIND, name: it.name.clone(), why: it.why };
            (it.name, Err(error))
        });
        let mut objects: Vec<_> = parsed.chain(unreadable).collect();
        objects.sort_by(|(one, _), (other, _)| one.cmp(other));
        let objects = objects.into_iter().map(|(_, object)| object).collect();
        Ok(Listed { version: list.version, objects })
    }

    /// The answer has the default status, whatever `object` has.
    pub async fn create<S: Spec>(&self, object: &Object<S>) -> Result<Object<S>, StoreError> {
        parse(&*self.create_raw(S::KIND, Raw::of(object)).await?)
    }

    /// Changes spec and metadata: reads, changes, and writes if nobody came in between, else again.
    /// `change` may refuse, and may run more than once.
    pub async fn modify<S, R, E>(
        &self,
        name: &str,
        mut change: impl FnMut(&mut Object<S>) -> Result<R, E>,
    ) -> Result<R, E>
    where
        S: Spec,
        E: From<StoreError>,
    {
        for attempt in 0.. {
            let mut object: Object<S> = self.get(name).await?;
            let before = object.clone();
            let result = change(&mut object)?;
            debug_assert!(object.status == before.status, "modify_status changes a status");
            if object == before {
                return Ok(result);
            }
            match self.replace_raw(S::KIND, Raw::of(&object)).await {
                Err(error) => pause_unless_over(error, attempt).await?,
                Ok(_) => return Ok(result),
            }
        }
        unreachable!("it pauses or is over")
    }

    /// Changes the status, as [`modify`](Self::modify) changes the rest.
    pub async fn modify_status<S, R, E>(
        &self,
        name: &str,
        mut change: impl FnMut(&Object<S>, &mut S::Status) -> Result<R, E>,
    ) -> Result<R, E>
    where
        S: Spec,
        E: From<StoreError>,
    {
        for attempt in 0.. {
            let mut object: Object<S> = self.get(name).await?;
            let mut status = object.status.clone();
            let result = change(&object, &mut status)?;
            if status == object.status {
                return Ok(result);
            }
            object.status = status;
            match self.replace_status_raw(S::KIND, Raw::of(&object)).await {
                Err(error) => pause_unless_over(error, attempt).await?,
                Ok(_) => return Ok(result),
            }
        }
        unreachable!("it pauses or is over")
    }

    /// If `allow` agrees to what the object is at that moment. None: it is gone; else it is ending.
    pub async fn delete<S, E>(
        &self,
        name: &str,
        allow: impl Fn(&Object<S>) -> Result<(), E>,
    ) -> Result<Option<Object<S>>, E>
    where
        S: Spec,
        E: From<StoreError>,
    {
        for attempt in 0.. {
            let object: Object<S> = self.get(name).await?;
            allow(&object)?;
            let unchanged = Precondition::unchanged(&object.metadata);
            match self.delete_raw(S::KIND, name, &unchanged).await {
                Err(error) => pause_unless_over(error, attempt).await?,
                Ok(ending) => return Ok(ending.map(|raw| parse(&raw)).transpose()?),
            }
        }
        unreachable!("it pauses or is over")
    }
}

pub(crate) fn parse<S: Spec>(raw: &Raw) -> Result<Object<S>, StoreError> {
    raw.parse().map_err(|error| {
        let name = raw.name().into();
        StoreError::Unreadable { kind: S::KIND, name, why: error.to_string() }
    })
}

/// Each time longer, and not as long as the others who wait.
async fn pause_unless_over(error: StoreError, attempt: u32) -> Result<(), StoreError> {
    if !matches!(error, StoreError::Conflict { .. }) || attempt + 1 >= ATTEMPTS_MAX {
        return Err(error);
    }
    pause(attempt).await;
    Ok(())
}

pub(crate) async fn pause(attempt: u32) {
    tokio::time::sleep(random_up_to(pause_limit(attempt))).await;
}

fn pause_limit(attempt: u32) -> Duration {
    PAUSE_MAX.min(Duration::from_millis(1 << attempt.min(16)))
}

fn random_up_to(limit: Duration) -> Duration {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    limit.mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

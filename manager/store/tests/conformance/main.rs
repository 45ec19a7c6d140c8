//! What every backend must do, as stories over the trait; each begins with a store of its own.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod caching;
mod lamp;
mod many;
mod watching;
mod writing;

use std::sync::Arc;

use ankole_store::{EmbeddedStore, MemoryStore, Store};
use tempfile::TempDir;

/// Each story is a test of each backend.
macro_rules! conformance {
    ($backend:ident: $($module:ident { $($story:ident)* })*) => {
        mod $backend {
            use crate::Backend;

            $($(
                #[tokio::test]
                async fn $story() {
                    let store = super::$backend();
                    crate::$module::$story(store.store()).await;
                }
            )*)*
        }
    };
}

macro_rules! stories_of {
    ($($backend:ident)*) => {
        $(conformance! { $backend:
            writing {
                what_is_created_has_uid_version_generation_and_time
                an_object_is_created_once
                of_two_writers_who_saw_the_same_the_second_looks_again
                a_version_is_not_used_again_for_an_object_that_is_made_anew
                an_object_of_the_same_name_is_another_by_its_uid
                a_write_without_a_version_is_refused
                a_status_is_written_alone
                a_writer_of_the_spec_does_not_touch_the_status
                the_generation_tells_changes_of_the_spec
                a_write_that_changes_nothing_is_none
                the_store_s_own_fields_are_not_the_writers
                an_object_with_finalizers_ends_when_the_last_is_gone
                what_is_ending_gets_no_new_finalizer
                an_object_is_deleted_only_if_it_is_the_one_that_was_meant
                names_at_the_limit
                an_object_that_is_too_large_is_refused_and_one_at_the_limit_can_be_deleted
                an_object_that_has_another_shape_hides_no_other
                labels_and_node_select
            }
            watching {
                a_watch_tells_all_that_changes_after_a_list_in_order
                an_end_is_told_when_it_is_asked_for_and_when_it_comes
                a_watch_goes_on_from_an_event
                a_watch_is_of_its_kind
                what_no_longer_matches_is_told_as_deleted
                a_watch_from_where_nothing_is_known_lists_again
                a_slow_watcher_is_told_to_list_again_and_holds_up_nobody
                a_waiting_watcher_wakes
            }
            caching {
                a_cache_follows_the_store
                what_changes_often_is_told_once
                what_cannot_be_read_is_not_gone
                a_cache_forgets_what_its_selector_no_longer_has
            }
            many {
                no_update_of_64_writers_is_lost
                of_many_who_create_one_succeeds
                what_was_answered_is_read
                a_change_that_is_refused_writes_nothing
                a_delete_asks_whom_it_deletes
            }
        })*
    };
}

stories_of! { memory embedded }

/// A store, and what has to live as long.
trait Backend {
    fn store(&self) -> Arc<dyn Store>;
}

impl Backend for Arc<MemoryStore> {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self) as _
    }
}

fn memory() -> impl Backend {
    Arc::new(MemoryStore::default())
}

impl Backend for (TempDir, Arc<EmbeddedStore>) {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.1) as _
    }
}

fn embedded() -> impl Backend {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("ankole.redb")).unwrap();
    (folder, Arc::new(store))
}

BEGIN TRANSACTION;
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  form TEXT NOT NULL UNIQUE,
  item INTEGER NOT NULL REFERENCES items (id),
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  turn INTEGER NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('pick', 'tie', 'bad', 'skip', 'undo')),
  choice INTEGER,
  position INTEGER,
  reason TEXT,
  seconds REAL,
  at REAL NOT NULL,
  CHECK ((action = 'pick') = (choice IS NOT NULL))
);
INSERT INTO "events" VALUES(1,'VND77CeZoVq6KwZR5LnWsA',2,1,0,'pick',1,0,NULL,3.76934000814799219369e-03,1.79572236751019215584e+09);
INSERT INTO "events" VALUES(2,'TKj8fafUe8eCnsns_rIWYg',3,1,0,'pick',2,1,NULL,0.00297348499589134,1.79572236751708698269e+09);
INSERT INTO "events" VALUES(3,'Mq2CQ0s5wmb0Yf5sAuFn3g',3,2,0,'tie',NULL,NULL,NULL,1.66849500965327024459e-03,1.7957223675202522278e+09);
INSERT INTO "events" VALUES(4,'Fa-WHbhbDwDyrr8H_oXPjQ',5,1,0,'skip',NULL,NULL,'broken',3.9150980010163038969e-03,1.79572236752611231807e+09);
INSERT INTO "events" VALUES(5,'9rw-eJIzdMA7t0jfNohcKA',5,2,0,'bad',NULL,NULL,NULL,8.17346997791901230812e-04,1.79572236753105425838e+09);
INSERT INTO "events" VALUES(6,'QD3_fAGiiIy4WD66zLojWQ',4,2,0,'pick',0,1,NULL,8.03441400057636201381e-03,1.79572236754629063607e+09);
INSERT INTO "events" VALUES(7,'43dv_SFDL5chUWRNYxtjvg',1,1,0,'pick',1,2,NULL,3.97324599907733500003e-03,1.79572236755419516567e+09);
INSERT INTO "events" VALUES(8,'undo 7',1,1,0,'undo',NULL,NULL,NULL,NULL,1.79572236756205582623e+09);
INSERT INTO "events" VALUES(9,'import dated 1e8f9d93ef2486182c91fe62a1e0ea10a655fa5edbb5f10cac218237934439a7',6,3,0,'pick',3,NULL,NULL,NULL,1706702400.0);
INSERT INTO "events" VALUES(10,'bfa0_Mh8jPjCo2-RRGKRQQ',5,4,0,'pick',0,0,NULL,7.06509900919627398252e-03,1.79572236758133816714e+09);
CREATE TABLE items (
  id INTEGER PRIMARY KEY,
  digest TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('comparison', 'match')),
  prompt TEXT NOT NULL,
  completions TEXT NOT NULL,
  extra TEXT NOT NULL,
  gold INTEGER,
  place INTEGER NOT NULL,
  wanted INTEGER NOT NULL,
  taken INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "items" VALUES(1,'ff910bdaa11faa8998f81d6ead3bcbfd67aebd7bdad2f8e52c80be8f1f74fb73','comparison','"Text 0."','[" a0", " b0", " c0", " d0"]','{"source": {"model": "m", "update": 0}}',NULL,2623900262289797823,2,2);
INSERT INTO "items" VALUES(2,'17efbcacc488909f715e1e77caef7e937f7154031364fde4113d391a39b57476','comparison','"Text 1."','[" a1", " b1", " c1", " d1"]','{"source": {"model": "m", "update": 1}}',NULL,784451689252310248,1,1);
INSERT INTO "items" VALUES(3,'e7059ea2d320be2c103d237f064d474389e6c97ded0f0401126f294f39fe7f71','comparison','"Text 2."','[" a2", " b2", " c2", " d2"]','{"source": {"model": "m", "update": 2}}',NULL,1010244374608636759,2,2);
INSERT INTO "items" VALUES(4,'9b8502741dbdcafc0df0a875805158a5df6c73ccddb40fe5ca45409edcb687d2','comparison','"Text 3."','[" a3", " b3", " c3", " d3"]','{"source": {"model": "m", "update": 3}}',NULL,1765164906047352605,1,1);
INSERT INTO "items" VALUES(5,'3f19b8c069179a0d31cf19b37bb28e6365afdde7c97b8563302e1b7d79007e12','comparison','"Text 4."','[" a4", " b4", " c4", " d4"]','{"source": {"model": "m", "update": 4}}',NULL,1104066587015171521,2,2);
INSERT INTO "items" VALUES(6,'3e7316f07e426134be0e809e1465ca43b2121252ca017a5dd4f835055536fda9','comparison','"Text 5."','[" a5", " b5", " c5", " d5"]','{"source": {"model": "m", "update": 5}}',NULL,2833312548641377679,2,1);
INSERT INTO "items" VALUES(7,'8ee799ac73952a7f4fbbebb1e75577a867d096c3fa347ee1a2bdeb61ad8b8336','comparison','[{"content": "H\u00e9?", "role": "user"}]','["One.", "Two."]','{"id": "chat"}',NULL,3270231490332623926,2,0);
INSERT INTO "items" VALUES(8,'8fc6e89c677bd54efe2e2a019af57d4ead54e877b02c6bb6f22db43597af77e8','comparison','"Gold."','[" a0", " b0", " c0", " d0"]','{"source": {"model": "m", "update": 0}}',2,2614347983182378458,0,0);
CREATE TABLE labellers (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('person', 'script', 'admin')),
  token TEXT UNIQUE,
  cursor INTEGER NOT NULL DEFAULT -1,
  created REAL NOT NULL
);
INSERT INTO "labellers" VALUES(1,'ann','person','6ebd049916d265fd6381dace6c745b603f838071b390e65c03a1f781975bf6c5',2623900262289797823,1.79572236749620962143e+09);
INSERT INTO "labellers" VALUES(2,'bob','person','337ff8a1225901c59d443503136aa54b9a0091c03fd99d8b6c94adb92335cbf6',2623900262289797823,1.7957223674981338978e+09);
INSERT INTO "labellers" VALUES(3,'elsewhere','script',NULL,-1,1.7957223675662944317e+09);
INSERT INTO "labellers" VALUES(4,'lexicon','script',NULL,1104066587015171521,1.79572236756866097451e+09);
CREATE TABLE labels (
  item INTEGER NOT NULL REFERENCES items (id),
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  turn INTEGER NOT NULL,
  event INTEGER NOT NULL UNIQUE REFERENCES events (id),
  action TEXT NOT NULL,
  choice INTEGER,
  PRIMARY KEY (item, labeller, turn)
) WITHOUT ROWID;
INSERT INTO "labels" VALUES(2,1,0,1,'pick',1);
INSERT INTO "labels" VALUES(3,1,0,2,'pick',2);
INSERT INTO "labels" VALUES(3,2,0,3,'tie',NULL);
INSERT INTO "labels" VALUES(4,2,0,6,'pick',0);
INSERT INTO "labels" VALUES(5,1,0,4,'skip',NULL);
INSERT INTO "labels" VALUES(5,2,0,5,'bad',NULL);
INSERT INTO "labels" VALUES(5,4,0,10,'pick',0);
INSERT INTO "labels" VALUES(6,3,0,9,'pick',3);
CREATE TABLE leases (
  form TEXT PRIMARY KEY,
  item INTEGER NOT NULL REFERENCES items (id),
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  turn INTEGER NOT NULL,
  since REAL NOT NULL,
  expires REAL NOT NULL,
  UNIQUE (labeller, item, turn)
);
INSERT INTO "leases" VALUES('bthUTL2DimbFfMGKHjcG9A',1,1,0,1.79572236756205582623e+09,1.79572416756205582616e+09);
INSERT INTO "leases" VALUES('piWjY9KegDAZ0ZuiCSikyA',1,2,0,1.79572236758431124682e+09,1.79572416758431124689e+09);
CREATE TABLE sessions (
  hash TEXT PRIMARY KEY,
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  created REAL NOT NULL
);
INSERT INTO "sessions" VALUES('3aff1f102bb7710cf9cbe1f1935552e7d592ed0774edf7cfd554ce29a6eb1ae3',1,1.79572236750210285187e+09);
CREATE INDEX items_open ON items (place) WHERE taken < wanted;
CREATE INDEX items_gold ON items (place) WHERE gold IS NOT NULL;
CREATE INDEX leases_item ON leases (item);
CREATE INDEX leases_expires ON leases (expires);
CREATE INDEX events_labeller ON events (labeller, id);
CREATE TRIGGER events_stay BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are only ever added'); END;
CREATE TRIGGER events_last BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are only ever added'); END;
CREATE INDEX labels_labeller ON labels (labeller, event);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',10);
COMMIT;
